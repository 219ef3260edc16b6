// How codes are written and multiplied by AVX2: as fp32.h.
#pragma once

#include <immintrin.h>

#include "rows.h"
#include "vectors.h"

namespace corom {

// Write the values of a span as codes, and their scale.
inline void encode(const Vector* values, Rows<Int8>& into, int row, int span) {
  constexpr int VECTORS = GROUP / 16;
  const int first = into.first_group(span), groups = into.first_group(span + 1) - first;
  Vector largest[VECTORS];
  for (int i = 0; i < VECTORS; i++) largest[i] = abs(values[i]);
  for (int group = 1; group < groups; group++) {
    for (int i = 0; i < VECTORS; i++) {
      largest[i] = max(largest[i], abs(values[VECTORS * group + i]));
    }
  }
  const float limit = max_of(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
  const Vector steps = set1(limit > 0 ? 127.0f / limit : 0.0f);
  for (int group = 0; group < groups; group++, values += VECTORS) {
    auto* codes = reinterpret_cast<__m256i*>(into.values(row, first + group));
    for (int i = 0; i < VECTORS; i++) {
      const Vector scaled = mul(values[i], steps);
      const __m256i packed =
          _mm256_packs_epi32(_mm256_cvtps_epi32(scaled.low), _mm256_cvtps_epi32(scaled.high));
      // Packing takes turns by lanes of four values.
      _mm256_store_si256(codes + i, _mm256_permute4x64_epi64(packed, 0b11011000));
    }
  }
  into.scales(row)[span] = limit * (1.0f / 127);
}

[[gnu::always_inline]] inline Integers add_products(Integers sums, Lanes inputs, Lanes weights,
                                                    Int8) {
  __m256i low, high;
  asm("vpmaddwd %2, %1, %0" : "=x"(low) : "x"(inputs.low), "x"(weights.low));
  asm("vpaddd %1, %0, %0" : "+x"(sums.low) : "x"(low));
  asm("vpmaddwd %2, %1, %0" : "=x"(high) : "x"(inputs.high), "x"(weights.high));
  asm("vpaddd %1, %0, %0" : "+x"(sums.high) : "x"(high));
  return sums;
}

}  // namespace corom
