// How codes are written and multiplied by AVX-512 VNNI: as fp32.h.
#pragma once

#include <immintrin.h>

#include "rows.h"
#include "vectors.h"

namespace corom {

// Write the values of a span as codes, and their scale.
inline void encode(const Vector* values, Rows<Int8>& into, int row, int span) {
  const int first = into.first_group(span), groups = into.first_group(span + 1) - first;
  Vector largest[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) largest[i] = abs(values[i]);
  for (int group = 1; group < groups; group++) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      largest[i] = max(largest[i], abs(values[4 * group + i]));
    }
  }
  const float limit = max_of(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
  const Vector steps = set1(limit > 0 ? 127.0f / limit : 0.0f);
  // Packing takes turns by lanes of four values.
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i offset = _mm512_set1_epi8(char(Int8::OFFSET));
  for (int group = 0; group < groups; group++, values += 4) {
    __m512i codes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) codes[i] = _mm512_cvtps_epi32(mul(values[i], steps));
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(codes[0], codes[1]),
                                              _mm512_packs_epi32(codes[2], codes[3]));
    _mm512_store_si512(into.values(row, first + group),  // xor adds it, in 8 bits
                       _mm512_xor_si512(_mm512_permutexvar_epi32(in_order, packed), offset));
  }
  into.scales(row)[span] = limit * (1.0f / 127);
}

[[gnu::always_inline]] inline Integers add_products(Integers sums, Lanes inputs, Lanes weights,
                                                    Int8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}

}  // namespace corom
