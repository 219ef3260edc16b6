// Rows of 8-bit codes: every GROUP values of a row share a scale, taken from those values alone.
// A code is kept as code + OFFSET, because the instruction multiplies unsigned by signed.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "buffer.h"

namespace corom {

constexpr int GROUP = 64;
constexpr int OFFSET = 128;

struct CodedRows {
  int width = 0;
  Buffer<std::uint8_t> codes;  // (rows, width)
  Buffer<float> scales;        // (rows, width / GROUP)

  void reserve(int rows, int columns) {
    width = columns;
    codes.reserve(std::size_t(rows) * columns);
    scales.reserve(std::size_t(rows) * groups());
  }
  int groups() const { return width / GROUP; }
};

// Write the codes of 64 values, group `group` of row `row`.
inline void encode(const __m512 values[4], CodedRows& into, int row, int group) {
  const __m512 largest =
      _mm512_max_ps(_mm512_max_ps(_mm512_abs_ps(values[0]), _mm512_abs_ps(values[1])),
                    _mm512_max_ps(_mm512_abs_ps(values[2]), _mm512_abs_ps(values[3])));
  const float limit = _mm512_reduce_max_ps(largest);
  const __m512 steps = _mm512_set1_ps(limit > 0 ? 127.0f / limit : 0.0f);
  const std::size_t place = std::size_t(row) * into.groups() + group;
  std::uint8_t* codes = into.codes.at(place * GROUP);
  const __m128i offset = _mm_set1_epi8(char(OFFSET));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], steps));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16 * i),
                     _mm_xor_si128(_mm512_cvtepi32_epi8(code), offset));  // adds it, in 8 bits
  }
  *into.scales.at(place) = limit * (1.0f / 127);
}

}  // namespace corom
