// Where the results of a product go: `store(row, panel, values)` takes those of a row and a panel.
// As they are, or added to what is there.
#pragma once

#include <cstddef>

#include "rows.h"
#include "vectors.h"
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

  [[gnu::always_inline]] void operator()(int row, int panel, const Vector values[]) const {
    if constexpr (TILE_VECTORS == 1) {
      write(values[0], at(row, panel), Factor());
    } else {
      rows(row, panel, 0)(values);
      rows(row, panel, 1)(values + 2);
    }
  }

  // Half a panel of a row, then of the next one, and so on.
  struct Half {
    float* to;
    int step;

    [[gnu::always_inline]] void operator()(const Vector values[2]) {
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

  [[gnu::always_inline]] void operator()(int row, int panel, const Vector values[]) const {
    add_to<TILE_VECTORS>(at(row, panel), values);
  }

  struct Half {
    float* to;
    int step;

    [[gnu::always_inline]] void operator()(const Vector values[2]) {
      add_to<2>(to, values);
      to += step;
    }
  };
  Half rows(int first, int panel, int half) const {
    return {at(first, panel) + half * (PANEL / 2), width};
  }

 private:
  template <int COUNT>
  [[gnu::always_inline]] static void add_to(float* to, const Vector values[]) {
    for (int i = 0; i < COUNT; i++) store(to + 16 * i, add(load(to + 16 * i), values[i]));
  }

  float* at(int row, int panel) const { return out + std::size_t(row) * width + panel * PANEL; }
};

}  // namespace corom
