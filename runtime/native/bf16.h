// How bf16 is written and multiplied, on CPUs with AVX512-BF16: as fp32.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "operands.h"
#include "rows.h"
#include "vectors.h"

namespace corom {

// Thirty-two values as bf16, in their order. As assembly, like every instruction that not all CPUs
// with AVX-512 have.
inline Vector in_bf16(Vector first, Vector second) {
  Vector rounded;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded) : "v"(first), "v"(second));
  return rounded;
}

inline void write(Vector first, Vector second, float* lanes, Bf16) {
  store(lanes, in_bf16(first, second));
}

[[gnu::always_inline]] inline Vector add_products(Vector sums, Lanes inputs, Lanes weights, Bf16) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}

// LANE tokens at a time, zeros behind the last.
inline Operand summed(Operand values, int tokens, Buffer<float>& out, std::size_t first, Bf16) {
  alignas(64) static constexpr std::uint16_t PAIRS[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const __m512i low = _mm512_load_si512(PAIRS[0]), high = _mm512_load_si512(PAIRS[1]);
  for (int t = 0; t < padded_pairs(tokens); t += 2) {
    float* to = out.at(first + std::size_t(t / 2) * HEAD);
    if (t >= tokens) {
      for (int lane = 0; lane < HEAD; lane += 16) storeu(to + lane, zero());
      continue;
    }
    for (int lane = 0; lane < HEAD / 2; lane += 16, to += 32) {
      const __m512i own = _mm512_loadu_si512(values.row(t).lanes + lane);
      const __m512i next = t + 1 < tokens ? _mm512_loadu_si512(values.row(t + 1).lanes + lane)
                                          : _mm512_setzero_si512();
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(own, low, next));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(own, high, next));
    }
  }
  return {out.at(first), HEAD};
}

inline Operand weights_of(float* weights, int width, int rows, Bf16) {
  for (int row = 0; row < rows; row++) {
    float* own = weights + std::size_t(row) * width;
    for (int t = 0; t < width; t += 32) {
      const Vector second = t + 16 < width ? loadu(own + t + 16) : zero();
      storeu(own + t / 2, in_bf16(loadu(own + t), second));
    }
  }
  return {weights, width};
}

}  // namespace corom
