// The weights of a linear layer, in panels of columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "rows.h"
#include "vectors.h"

namespace corom {

constexpr int PANEL = 16 * TILE_VECTORS;  // columns

// A linear layer as it is given: (columns, inputs) and (columns,), owned by the caller. Part of the
// interface in C.
struct Linear {
  const float* weight;
  const float* bias;
};

// (columns, inputs) in memory: panels; of each, LANE inputs at a time, and of those the panel's
// columns, as one instruction takes them. Codes are made here: one scale a column. Their
// `corrections` are what the OFFSET of a row's values adds to a sum, with the other sign; zeros
// where there is none.
template <typename Number>
class Weights {
 public:
  // weights (columns, inputs); bias (columns,). Of the rows that they will multiply: `span`, and
  // `smoothing` (inputs,), null for none. Of their results: `times` what they would be. Kept in
  // `arena`.
  Weights(Arena& arena, int columns, int inputs, int span, const float* weights, const float* bias,
          const float* smoothing = nullptr, float times = 1)
      : columns_(columns),
        inputs_(inputs),
        span_(std::min(span, inputs)),
        spans_((inputs + span_ - 1) / span_),
        packed_(arena.take<typename Number::Weight>(std::size_t(columns) * inputs)),
        bias_(arena.take<float>(columns)),
        scales_(arena.take<float>(is_coded<Number> ? columns : 0)),
        corrections_(
            arena.take<std::int32_t>(is_coded<Number> ? std::size_t(columns) * spans_ : 0)) {
    for (int column = 0; column < columns; column++) {
      const float* own = weights + std::size_t(column) * inputs;
      bias_[column] = bias[column] * times;
      pack(column, [&](int input) {
        return own[input] * (smoothing == nullptr ? times : smoothing[input] * times);
      });
    }
  }

  int panels() const { return columns_ / PANEL; }
  // (inputs / LANE, PANEL, LANE)
  const typename Number::Weight* panel(int index) const {
    return packed_ + std::size_t(index) * PANEL * inputs_;
  }
  // Where one of `parts` of it is in memory, to be fetched only: there may be no such panel.
  const char* ahead(int index, int part, int parts) const {
    const std::size_t bytes = PANEL * inputs_ * sizeof *packed_;
    return reinterpret_cast<const char*>(packed_) + index * bytes + bytes * part / parts;
  }
  const float* bias(int panel) const { return bias_ + std::size_t(panel) * PANEL; }
  const float* scales(int panel) const { return scales_ + std::size_t(panel) * PANEL; }
  // (spans, PANEL)
  const std::int32_t* corrections(int panel) const {
    return corrections_ + std::size_t(panel) * PANEL * spans_;
  }

 private:
  template <typename Input>
  void pack(int column, const Input& weight) {
    const auto at = [&](int input) {
      return packed_ +
             (std::size_t(column / PANEL) * inputs_ + input / Number::LANE * Number::LANE) * PANEL +
             column % PANEL * Number::LANE + input % Number::LANE;
    };
    if constexpr (is_coded<Number>) {
      float largest = 0;
      for (int input = 0; input < inputs_; input++) {
        largest = std::max(largest, std::abs(weight(input)));
      }
      const float scale = std::max(largest, __FLT_MIN__) / 127;
      scales_[column] = scale;
      std::int32_t* corrections =
          corrections_ + std::size_t(column / PANEL) * spans_ * PANEL + column % PANEL;
      for (int span = 0; span < spans_; span++) {
        std::int32_t sum = 0;
        for (int input = span * span_; input < std::min((span + 1) * span_, inputs_); input++) {
          *at(input) = std::int8_t(std::nearbyint(weight(input) / scale));
          sum += *at(input);
        }
        corrections[span * PANEL] = -Int8::OFFSET * sum;
      }
    } else {
      for (int input = 0; input < inputs_; input++) *at(input) = as_weight(weight(input), Number());
    }
  }

  static float as_weight(float value, Fp32) { return value; }
  static std::uint16_t as_weight(float value, Bf16) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
  }

  int columns_, inputs_, span_, spans_;
  typename Number::Weight* packed_;  // these are the arena's
  float *bias_, *scales_;
  std::int32_t* corrections_;
};

}  // namespace corom
