// The weights of a linear layer, in panels of 64 columns.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "rows.h"

namespace corom {

constexpr int PANEL = 64;  // columns; as wide as a group, so that a panel's result can be encoded

// (columns, inputs) in memory: panels; of each, LANE inputs at a time, and of those the 64 columns,
// as one instruction takes them. Codes are made here: one scale a column. Their `corrections` are
// what the OFFSET of a row's values adds to a sum, with the other sign.
template <typename Number>
class Weights {
 public:
  // weights (columns, inputs); bias (columns,)
  Weights(int columns, int inputs, const float* weights, const float* bias)
      : columns_(columns),
        inputs_(inputs),
        packed_(std::size_t(columns) * inputs),
        bias_(columns),
        scales_(is_coded<Number> ? columns : 0),
        corrections_(is_coded<Number> ? std::size_t(columns) * inputs / GROUP : 0) {
    std::copy_n(bias, columns, bias_.at(0));
    for (int column = 0; column < columns; column++) {
      pack(column, weights + std::size_t(column) * inputs);
    }
  }

  int panels() const { return columns_ / PANEL; }
  // (inputs / LANE, PANEL, LANE)
  const typename Number::Weight* panel(int index) const {
    return packed_.at(std::size_t(index) * PANEL * inputs_);
  }
  const float* bias(int panel) const { return bias_.at(std::size_t(panel) * PANEL); }
  const float* scales(int panel) const { return scales_.at(std::size_t(panel) * PANEL); }
  // (inputs / GROUP, PANEL)
  const std::int32_t* corrections(int panel) const {
    return corrections_.at(std::size_t(panel) * PANEL * inputs_ / GROUP);
  }

 private:
  void pack(int column, const float* weights) {
    const auto at = [&](int input) {
      return packed_.at(
          (std::size_t(column / PANEL) * inputs_ + input / Number::LANE * Number::LANE) * PANEL +
          column % PANEL * Number::LANE + input % Number::LANE);
    };
    if constexpr (is_coded<Number>) {
      float largest = 0;
      for (int input = 0; input < inputs_; input++) {
        largest = std::max(largest, std::abs(weights[input]));
      }
      const float scale = std::max(largest, __FLT_MIN__) / 127;
      *scales_.at(column) = scale;
      std::int32_t* corrections =
          corrections_.at(std::size_t(column / PANEL) * inputs_ / GROUP * PANEL + column % PANEL);
      for (int group = 0; group < inputs_ / GROUP; group++) {
        std::int32_t sum = 0;
        for (int input = group * GROUP; input < (group + 1) * GROUP; input++) {
          *at(input) = std::int8_t(std::nearbyint(weights[input] / scale));
          sum += *at(input);
        }
        corrections[group * PANEL] = -Int8::OFFSET * sum;
      }
    } else {
      for (int input = 0; input < inputs_; input++)
        *at(input) = as_weight(weights[input], Number());
    }
  }

  static float as_weight(float value, Fp32) { return value; }
  static std::uint16_t as_weight(float value, Bf16) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
  }

  int columns_, inputs_;
  Buffer<typename Number::Weight> packed_;
  Buffer<float> bias_, scales_;
  Buffer<std::int32_t> corrections_;
};

}  // namespace corom
