// Rows of values as a product takes them: fp32, bf16 or codes of 8 bits.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "buffer.h"
#include "vectors.h"

namespace corom {

constexpr int GROUP = 64;  // values: widths are multiples of it, spans are made of it

// What values and weights are while they are multiplied. LANE: how many of a row's values one lane
// of 32 bits takes.
struct Fp32 {
  using Value = float;
  using Weight = float;
  using Sums = Vector;
  static constexpr int LANE = 1;
};
struct Bf16 {
  using Value = std::uint16_t;
  using Weight = std::uint16_t;
  using Sums = Vector;
  static constexpr int LANE = 2;
};
// A span of a row's values shares a scale, which is taken from those values alone. A value is kept
// as code + OFFSET.
struct Int8 {
  using Value = Code;
  using Weight = CodedWeight;
  using Sums = Integers;
  static constexpr int LANE = int(4 / sizeof(Code));
  static constexpr int OFFSET = CODE_OFFSET;
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

// Write the GROUP values of each group of a span.
template <typename Number>
void encode(const Vector* values, Rows<Number>& into, int row, int span) {
  for (int group = into.first_group(span); group < into.first_group(span + 1); group++) {
    float* lanes = reinterpret_cast<float*>(into.values(row, group));
    write(values[0], values[1], lanes, Number());
    write(values[2], values[3], lanes + 32 / Number::LANE, Number());
    values += 4;
  }
}

}  // namespace corom
