// LayerNorm of a row, with the sum that comes before it.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "buffer.h"
#include "rows.h"

namespace corom {

constexpr int WIDEST = 4096;  // values of a row that is normalized

class Norm {
 public:
  Norm(int width, float epsilon, const float* weight, const float* bias)
      : width_(width), epsilon_(epsilon), weight_(width), bias_(width) {
    std::memcpy(weight_.at(0), weight, width * sizeof(float));
    std::memcpy(bias_.at(0), bias, width * sizeof(float));
  }

  // out = LayerNorm(row + other); all (width,), `out` may be either. `into`: gets it too.
  template <typename Number>
  void operator()(const float* row, const float* other, float* out, Rows<Number>* into,
                  int into_row) const {
    const int vectors = width_ / 16;
    __m512 values[WIDEST / 16];
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < vectors; i++) {
      values[i] = _mm512_add_ps(_mm512_loadu_ps(row + 16 * i), _mm512_loadu_ps(other + 16 * i));
      sum = _mm512_add_ps(sum, values[i]);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / float(width_));
    __m512 squares = _mm512_setzero_ps();
    for (int i = 0; i < vectors; i++) {
      values[i] = _mm512_sub_ps(values[i], mean);
      squares = _mm512_fmadd_ps(values[i], values[i], squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / float(width_);
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(variance + epsilon_));
    for (int i = 0; i < vectors; i++) {
      values[i] =
          _mm512_fmadd_ps(_mm512_mul_ps(values[i], scale), _mm512_load_ps(weight_.at(16 * i)),
                          _mm512_load_ps(bias_.at(16 * i)));
      _mm512_storeu_ps(out + 16 * i, values[i]);
    }
    if (into == nullptr) return;
    for (int group = 0; group < into->groups(); group++) {
      encode(values + 4 * group, *into, into_row, group);
    }
  }

 private:
  int width_;
  float epsilon_;
  Buffer<float> weight_, bias_;
};

}  // namespace corom
