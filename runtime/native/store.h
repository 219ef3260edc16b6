// Where the results of a product go: `store(row, panel, values[4])` takes 64 of a row.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "math.h"
#include "model.h"
#include "rows.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// Into rows of `width` fp32 values.
struct Written {
  static constexpr bool SHORT = true;  // so few instructions are repeated for every row of a tile

  float* out;
  int width;

  // Called before the product is begun.
  void expect(int row, int panel) const {
    for (int i = 0; i < 4; i++) __builtin_prefetch(at(row, panel) + 16 * i, 1);
  }

  [[gnu::always_inline]] void operator()(int row, int panel, const __m512 values[4]) const {
    for (int i = 0; i < 4; i++) _mm512_store_ps(at(row, panel) + 16 * i, values[i]);
  }

 private:
  float* at(int row, int panel) const { return out + std::size_t(row) * width + panel * PANEL; }
};

// Through the activation into `inner`, a whole span of a row at a time.
template <typename Number>
class Activated {
 public:
  static constexpr bool SHORT = false;
  static constexpr int PANELS = INNER_SPAN<Number> / PANEL;

  Activated(const Activation<Model<Number>::DEGREE>& activation, Rows<Number>& inner)
      : activation_(activation), inner_(inner) {}

  void expect(int, int) const {}

  void operator()(int row, int panel, const __m512 values[4]) {
    __m512* span = spans_[row % TILE];
    const int place = panel % PANELS;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) span[4 * place + i] = activation_(values[i]);
    if (place + 1 == PANELS || panel + 1 == inner_.groups()) {
      encode(span, inner_, row, panel / PANELS);
    }
  }

 private:
  const Activation<Model<Number>::DEGREE> activation_;
  Rows<Number>& inner_;
  __m512 spans_[TILE][4 * PANELS];  // of a tile, whose rows follow each other
};

}  // namespace corom
