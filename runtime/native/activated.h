// Where the results of a product go, as in written.h: through the activation.
#pragma once

#include "math.h"
#include "model.h"
#include "rows.h"
#include "tiles.h"
#include "vectors.h"
#include "weights.h"

namespace corom {

// Into `inner`, codes a whole span of a row at a time. ROWS: of those that follow each other, how
// many take turns with their panels.
template <typename Number, int ROWS>
class Activated {
 public:
  static constexpr bool SHORT = false;
  static constexpr int PANELS = INNER_SPAN<Number> / PANEL;

  Activated(const Activation<Model<Number>::DEGREE>& activation, Rows<Number>& inner)
      : activation_(activation), inner_(inner) {}

  void expect(int, int) const {}

  void operator()(int row, int panel, const Vector values[]) {
    Vector* span = spans_[row % ROWS];
    const int place = panel % PANELS;
#pragma GCC unroll 4
    for (int i = 0; i < TILE_VECTORS; i++) span[TILE_VECTORS * place + i] = activation_(values[i]);
    if (place + 1 == PANELS || panel + 1 == inner_.groups() * GROUP / PANEL) {
      encode(span, inner_, row, panel / PANELS);
    }
  }

  // Half a panel of a row, then of the next one, and so on.
  struct Half {
    Activated& store;
    int row, span, place;
    bool last;  // of the span

    [[gnu::always_inline]] void operator()(const Vector values[2]) {
      const Vector low = store.activation_(values[0]), high = store.activation_(values[1]);
      if constexpr (is_coded<Number>) {
        Vector* own = store.spans_[row % ROWS];
        own[place] = low, own[place + 1] = high;
        if (last) encode(own, store.inner_, row, span);
      } else {
        float* lanes = reinterpret_cast<float*>(store.inner_.values(row, span));
        write(low, high, lanes + 16 * place / Number::LANE, Number());
      }
      row++;
    }
  };
  Half rows(int first, int panel, int half) {
    const bool last = (panel + 1) % PANELS == 0 || panel + 1 == inner_.groups() * GROUP / PANEL;
    return {*this, first, panel / PANELS, panel % PANELS * TILE_VECTORS + 2 * half,
            half == 1 && last};
  }

 private:
  const Activation<Model<Number>::DEGREE> activation_;
  Rows<Number>& inner_;
  Vector spans_[ROWS][TILE_VECTORS * PANELS];
};

}  // namespace corom
