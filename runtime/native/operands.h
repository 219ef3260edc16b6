// What attention multiplies: fp32 values where they are, or pairs of them in bf16, which the
// instruction multiplies in one go.
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

// Rows of lanes of 32 bits, `step` apart; a lane is a value, or two in bf16.
struct Operand {
  const float* lanes;
  int step;

  Operand row(int index) const { return {lanes + std::size_t(index) * step, step}; }
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

// Queries (rows, HEAD), `step` apart, as they are multiplied: lane by lane.
inline Operand queried(const float* queries, int step, int, Buffer<float>&, Fp32) {
  return {queries, step};
}
inline Operand queried(const float* queries, int step, int rows, Buffer<float>& out, Bf16) {
  for (int row = 0; row < rows; row++) {
    const float* from = queries + std::size_t(row) * step;
    for (int d = 0; d < HEAD; d += 32) {
      _mm512_storeu_ps(out.at(std::size_t(row) * HEAD / 2 + d / 2),
                       in_bf16(_mm512_loadu_ps(from + d), _mm512_loadu_ps(from + d + 16)));
    }
  }
  return {out.at(0), HEAD / 2};
}

// Keys (tokens, HEAD) as (HEAD / LANE, padded tokens), zeros behind the last token.
inline Operand turned(const float* keys, int step, int tokens, float* out, Fp32) {
  const int width = padded(tokens);
  for (int t = 0; t < width; t += 16) {
    const float* from = keys + std::size_t(t) * step;
    for (int d = 0; d < HEAD; d += 16) {
      const auto load = [&](int i) { return _mm512_loadu_ps(from + std::size_t(i) * step + d); };
      store_turned(tokens - t, load, out + std::size_t(d) * width + t, width);
    }
  }
  return {out, width};
}
inline Operand turned(const float* keys, int step, int tokens, float* out, Bf16) {
  const int width = padded(tokens);
  for (int t = 0; t < width; t += 16) {
    const float* from = keys + std::size_t(t) * step;
    for (int d = 0; d < HEAD; d += 32) {
      const auto load = [&](int i) {
        const float* row = from + std::size_t(i) * step + d;
        return in_bf16(_mm512_loadu_ps(row), _mm512_loadu_ps(row + 16));
      };
      store_turned(tokens - t, load, out + std::size_t(d / 2) * width + t, width);
    }
  }
  return {out, width};
}

// Values (tokens, HEAD) as they are summed up: LANE tokens at a time, zeros behind the last.
inline Operand summed(const float* values, int step, int, Buffer<float>&, std::size_t, Fp32) {
  return {values, step};
}
inline Operand summed(const float* values, int step, int tokens, Buffer<float>& out,
                      std::size_t first, Bf16) {
  alignas(64) static constexpr std::uint16_t PAIRS[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i pairs = _mm512_load_si512(PAIRS);
  for (int t = 0; t < tokens; t += 2) {
    const float* from = values + std::size_t(t) * step;
    for (int d = 0; d < HEAD; d += 16) {
      const __m512 next = t + 1 < tokens ? _mm512_loadu_ps(from + step + d) : _mm512_setzero_ps();
      const __m512i both = _mm512_castps_si512(in_bf16(_mm512_loadu_ps(from + d), next));
      _mm512_storeu_si512(out.at(first + std::size_t(t / 2) * HEAD + d),
                          _mm512_permutexvar_epi16(pairs, both));
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
