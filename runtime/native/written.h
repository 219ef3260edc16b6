// Where the results of a product go: `store(row, panel, values[4])` takes 64 of a row. As they are,
// or added to what is there.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "rows.h"
#include "weights.h"

namespace corom {

// Into rows of values as they will be multiplied, `step` lanes of 32 bits apart.
template <typename Factor>
struct Written {
  static constexpr bool SHORT = true;  // so few instructions are repeated for every row of a tile

  float* out;
  int step;

  // Called before the product is begun.
  void expect(int row, int panel) const {
    for (int lane = 0; lane < LANES; lane += 16) __builtin_prefetch(at(row, panel) + lane, 1);
  }

  [[gnu::always_inline]] void operator()(int row, int panel, const __m512 values[4]) const {
    rows(row, panel, 0)(values);
    rows(row, panel, 1)(values + 2);
  }

  // Half a panel of a row, then of the next one, and so on.
  struct Half {
    float* to;
    int step;

    [[gnu::always_inline]] void operator()(const __m512 values[2]) {
      write(values[0], values[1], to, Factor());
      to += step;
    }
  };
  Half rows(int first, int panel, int half) const {
    return {at(first, panel) + half * (LANES / 2), step};
  }

 private:
  static constexpr int LANES = PANEL / Factor::LANE;

  float* at(int row, int panel) const { return out + std::size_t(row) * step + panel * LANES; }
};

// Added to rows of `width` fp32 values.
struct Added {
  static constexpr bool SHORT = true;

  float* out;
  int width;

  void expect(int row, int panel) const {
    for (int i = 0; i < PANEL; i += 16) __builtin_prefetch(at(row, panel) + i, 1);
  }

  [[gnu::always_inline]] void operator()(int row, int panel, const __m512 values[4]) const {
    rows(row, panel, 0)(values);
    rows(row, panel, 1)(values + 2);
  }

  struct Half {
    float* to;
    int step;

    [[gnu::always_inline]] void operator()(const __m512 values[2]) {
      for (int i = 0; i < 2; i++) {
        _mm512_store_ps(to + 16 * i, _mm512_add_ps(_mm512_load_ps(to + 16 * i), values[i]));
      }
      to += step;
    }
  };
  Half rows(int first, int panel, int half) const {
    return {at(first, panel) + half * (PANEL / 2), width};
  }

 private:
  float* at(int row, int panel) const { return out + std::size_t(row) * width + panel * PANEL; }
};

}  // namespace corom
