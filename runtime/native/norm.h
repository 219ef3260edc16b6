// LayerNorm of a row.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "buffer.h"
#include "rows.h"

namespace corom {

constexpr int WIDEST = 4096;  // values of a row that is normalized

// Some values of a normalized row are ten times the others in every token. Codes are made of values
// divided by their `smoothing`, which the weights that multiply them are multiplied by. Powers of
// two: neither loses a digit.
class Norm {
 public:
  // All (width,); smoothing may be null.
  Norm(int width, float epsilon, const float* weight, const float* bias, const float* smoothing)
      : width_(width),
        epsilon_(epsilon),
        weight_(width),
        bias_(width),
        smoothing_(width),
        inverse_(width) {
    std::copy_n(weight, width, weight_.at(0));
    std::copy_n(bias, width, bias_.at(0));
    for (int i = 0; i < width; i++) {
      *smoothing_.at(i) = smoothing == nullptr ? 1.0f : smoothing[i];
      *inverse_.at(i) = 1.0f / *smoothing_.at(i);
    }
  }

  const float* weight() const { return weight_.at(0); }
  const float* bias() const { return bias_.at(0); }
  const float* smoothing() const { return smoothing_.at(0); }

  // row = LayerNorm(row), (width,). `into`: gets it too, as its row `into_row`. Returns
  // 1 / deviation.
  template <typename Number>
  float operator()(float* row, Rows<Number>* into, int into_row) const {
    const int vectors = width_ / 16;
    Vector values[WIDEST / 16];
    Vector sums[4] = {};  // an addition need not wait for the one before
    for (int at = 0; at < vectors; at += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        sums[i] = add(sums[i], load(row + 16 * (at + i)));
      }
    }
    const Vector mean = set1(total(sums) / float(width_));
    Vector squares[4] = {};
    for (int at = 0; at < vectors; at += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        values[at + i] = sub(load(row + 16 * (at + i)), mean);
        squares[i] = fmadd(values[at + i], values[at + i], squares[i]);
      }
    }
    const float variance = total(squares) / float(width_);
    const float factor = 1.0f / std::sqrt(variance + epsilon_);
    const Vector scale = set1(factor);
    for (int i = 0; i < vectors; i++) {
      values[i] = fmadd(mul(values[i], scale), load(weight_.at(16 * i)), load(bias_.at(16 * i)));
      store(row + 16 * i, values[i]);
      if (is_coded<Number> && into != nullptr)
        values[i] = mul(values[i], load(inverse_.at(16 * i)));
    }
    if (into == nullptr) return factor;
    for (int span = 0; span < into->spans(); span++) {
      encode(values + 4 * into->first_group(span), *into, into_row, span);
    }
    return factor;
  }

 private:
  static float total(const Vector sums[4]) {
    return sum_of(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  }

  int width_;
  float epsilon_;
  Buffer<float> weight_, bias_, smoothing_, inverse_;
};

}  // namespace corom
