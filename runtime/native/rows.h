// Rows of values as a product takes them: fp32, bf16 or codes of 8 bits.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "buffer.h"

namespace corom {

constexpr int GROUP = 64;  // values: widths are multiples of it, spans are made of it

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
// A span of a row's values shares a scale, which is taken from those values alone. A value is kept
// as code + OFFSET, because the instruction multiplies unsigned by signed.
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
  // `span`: values that share a scale; the last may be fewer. Of whole groups, like `width`.
  void reserve(std::size_t rows, int width, int span) {
    groups_ = width / GROUP;
    span_groups_ = std::min(span, width) / GROUP;
    spans_ = (groups_ + span_groups_ - 1) / span_groups_;
    values_.reserve(rows * width);
    if (is_coded<Number>) scales_.reserve(rows * spans_);
  }

  int groups() const { return groups_; }
  int spans() const { return spans_; }
  // The first group of a span; of the one behind the last: their number.
  int first_group(int span) const { return std::min(span * span_groups_, groups_); }
  typename Number::Value* values(int row, int group = 0) {
    return values_.at(place(row, group) * GROUP);
  }
  const typename Number::Value* values(int row) const { return values_.at(place(row, 0) * GROUP); }
  float* scales(int row) { return scales_.at(std::size_t(row) * spans_); }
  const float* scales(int row) const { return scales_.at(std::size_t(row) * spans_); }

 private:
  std::size_t place(int row, int group) const { return std::size_t(row) * groups_ + group; }

  int groups_ = 0, span_groups_ = 1, spans_ = 0;
  Buffer<typename Number::Value> values_;  // (rows, width)
  Buffer<float> scales_;                   // (rows, spans), of codes alone
};

// Have the values of a row fetched while others are computed with.
inline void prefetch(const float* row, int width) {
  for (int i = 0; i < width; i += 16) _mm_prefetch(row + i, _MM_HINT_T0);
}

// Thirty-two values as bf16, in their order.
inline __m512 in_bf16(__m512 first, __m512 second) {
  __m512 rounded;  // as assembly, like every instruction that not all CPUs with AVX-512 have
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded) : "v"(first), "v"(second));
  return rounded;
}

// Write thirty-two values as they will be multiplied.
inline void write(__m512 first, __m512 second, float* lanes, Fp32) {
  _mm512_store_ps(lanes, first);
  _mm512_store_ps(lanes + 16, second);
}
inline void write(__m512 first, __m512 second, float* lanes, Bf16) {
  _mm512_store_ps(lanes, in_bf16(first, second));
}

// Write the GROUP values of each group of a span.
template <typename Number>
void encode(const __m512* values, Rows<Number>& into, int row, int span) {
  for (int group = into.first_group(span); group < into.first_group(span + 1); group++) {
    float* lanes = reinterpret_cast<float*>(into.values(row, group));
    write(values[0], values[1], lanes, Number());
    write(values[2], values[3], lanes + 32 / Number::LANE, Number());
    values += 4;
  }
}
inline void encode(const __m512* values, Rows<Int8>& into, int row, int span) {
  const int first = into.first_group(span), groups = into.first_group(span + 1) - first;
  __m512 largest[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) largest[i] = _mm512_abs_ps(values[i]);
  for (int group = 1; group < groups; group++) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      largest[i] = _mm512_max_ps(largest[i], _mm512_abs_ps(values[4 * group + i]));
    }
  }
  const float limit = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
  const __m512 steps = _mm512_set1_ps(limit > 0 ? 127.0f / limit : 0.0f);
  // Packing takes turns by lanes of four values.
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i offset = _mm512_set1_epi8(char(Int8::OFFSET));
  for (int group = 0; group < groups; group++, values += 4) {
    __m512i codes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) codes[i] = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], steps));
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(codes[0], codes[1]),
                                              _mm512_packs_epi32(codes[2], codes[3]));
    _mm512_store_si512(into.values(row, first + group),  // xor adds it, in 8 bits
                       _mm512_xor_si512(_mm512_permutexvar_epi32(in_order, packed), offset));
  }
  into.scales(row)[span] = limit * (1.0f / 127);
}

}  // namespace corom
