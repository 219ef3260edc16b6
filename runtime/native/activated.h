// Where the results of a product go, as in written.h: through the activation.
#pragma once

#include <immintrin.h>

#include "math.h"
#include "model.h"
#include "rows.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// Into `inner`, a whole span of a row at a time.
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
