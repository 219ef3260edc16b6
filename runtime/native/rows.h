// Rows of values as a product takes them: fp32, bf16 or codes of 8 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "buffer.h"

namespace corom {

constexpr int GROUP = 64;  // values that are written at once; in Int8 they share a scale

// What values and weights are while they are multiplied. LANE: how many of a row's values one lane
// of 32 bits takes.
struct Fp32 {
  using Value = float;
  using Weight = float;
  using Sums = __m512;
  static constexpr int LANE = 1;
};
struct Bf16 {
  using Value = std::uint16_t;
  using Weight = std::uint16_t;
  using Sums = __m512;
  static constexpr int LANE = 2;
};
// The scale of every GROUP values of a row is taken from those values alone. A value is kept as
// code + OFFSET, because the instruction multiplies unsigned by signed.
struct Int8 {
  using Value = std::uint8_t;
  using Weight = std::int8_t;
  using Sums = __m512i;
  static constexpr int LANE = 4;
  static constexpr int OFFSET = 128;
};

template <typename Number>
constexpr bool is_coded = std::is_same_v<Number, Int8>;

template <typename Number>
class Rows {
 public:
  void reserve(std::size_t rows, int width) {
    groups_ = width / GROUP;
    values_.reserve(rows * width);
    if (is_coded<Number>) scales_.reserve(rows * groups_);
  }

  int groups() const { return groups_; }
  typename Number::Value* values(int row, int group = 0) {
    return values_.at(place(row, group) * GROUP);
  }
  const typename Number::Value* values(int row) const { return values_.at(place(row, 0) * GROUP); }
  float* scale(int row, int group) { return scales_.at(place(row, group)); }
  const float* scales(int row) const { return scales_.at(place(row, 0)); }

 private:
  std::size_t place(int row, int group) const { return std::size_t(row) * groups_ + group; }

  int groups_ = 0;
  Buffer<typename Number::Value> values_;  // (rows, width)
  Buffer<float> scales_;                   // (rows, groups), of codes alone
};

// Write 64 values as group `group` of row `row`.
inline void encode(const __m512 values[4], Rows<Fp32>& into, int row, int group) {
  float* to = into.values(row, group);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) _mm512_store_ps(to + 16 * i, values[i]);
}

inline void encode(const __m512 values[4], Rows<Bf16>& into, int row, int group) {
  std::uint16_t* to = into.values(row, group);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m256i rounded;  // as assembly, like every instruction that not all CPUs with AVX-512 have
    asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(values[i]));
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16 * i), rounded);
  }
}

inline void encode(const __m512 values[4], Rows<Int8>& into, int row, int group) {
  const __m512 largest =
      _mm512_max_ps(_mm512_max_ps(_mm512_abs_ps(values[0]), _mm512_abs_ps(values[1])),
                    _mm512_max_ps(_mm512_abs_ps(values[2]), _mm512_abs_ps(values[3])));
  const float limit = _mm512_reduce_max_ps(largest);
  const __m512 steps = _mm512_set1_ps(limit > 0 ? 127.0f / limit : 0.0f);
  const __m128i offset = _mm_set1_epi8(char(Int8::OFFSET));
  std::uint8_t* to = into.values(row, group);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], steps));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + 16 * i),
                    _mm_xor_si128(_mm512_cvtepi32_epi8(code), offset));  // adds it, in 8 bits
  }
  *into.scale(row, group) = limit * (1.0f / 127);
}

}  // namespace corom
