// Where the results of a product go: `store(row, panel, values[4])` takes 64 of a row. As they are.
#pragma once

#include <immintrin.h>

#include <cstddef>

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

}  // namespace corom
