// What attention multiplies: values in fp32, or pairs of them in bf16, which the instruction
// multiplies in one go.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "math.h"
#include "rows.h"

namespace corom {

constexpr int HEAD = 64;  // values of a head, as many as a group

inline int padded(int tokens) { return (tokens + 15) / 16 * 16; }

// Tokens whose pairs fill whole tiles.
inline int padded_pairs(int tokens) { return (tokens + 31) / 32 * 32; }

// Rows of lanes of 32 bits, `step` apart; a lane is a value, or two in bf16.
struct Operand {
  const float* lanes;
  int step;

  Operand row(int index) const { return {lanes + std::size_t(index) * step, step}; }
  Operand from(int lane) const { return {lanes + lane, step}; }
};

// Sixteen rows of sixteen lanes, of which `count` are there, as sixteen columns, `step` apart.
template <typename Load>
[[gnu::always_inline]] inline void store_turned(int count, const Load& load, float* out, int step) {
  __m512 block[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) block[i] = i < count ? load(i) : _mm512_setzero_ps();
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm512_storeu_ps(out + std::size_t(i) * step, block[i]);
}

// Keys (tokens, HEAD / LANE) as (HEAD / LANE, padded tokens), zeros behind the last token.
template <typename Factor>
Operand turned(Operand keys, int tokens, float* out) {
  const int width = padded(tokens);
  for (int t = 0; t < width; t += 16) {
    const Operand from = keys.row(t);
    for (int lane = 0; lane < HEAD / Factor::LANE; lane += 16) {
      const auto load = [&](int i) { return _mm512_loadu_ps(from.row(i).lanes + lane); };
      store_turned(tokens - t, load, out + std::size_t(lane) * width + t, width);
    }
  }
  return {out, width};
}

// Values (tokens, HEAD / LANE) as they are summed up: LANE tokens at a time, zeros behind the last.
inline Operand summed(Operand values, int, Buffer<float>&, std::size_t, Fp32) { return values; }
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
      for (int lane = 0; lane < HEAD; lane += 16) _mm512_storeu_ps(to + lane, _mm512_setzero_ps());
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

// A softmax's rows of `width` weights as they are multiplied, where they are.
inline Operand weights_of(float* weights, int width, int, Fp32) { return {weights, width}; }
inline Operand weights_of(float* weights, int width, int rows, Bf16) {
  for (int row = 0; row < rows; row++) {
    float* own = weights + std::size_t(row) * width;
    for (int t = 0; t < width; t += 32) {
      const __m512 second = t + 16 < width ? _mm512_loadu_ps(own + t + 16) : _mm512_setzero_ps();
      _mm512_storeu_ps(own + t / 2, in_bf16(_mm512_loadu_ps(own + t), second));
    }
  }
  return {weights, width};
}

}  // namespace corom
