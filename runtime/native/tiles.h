// Rows in tiles: as many at once as fit into the registers.
#pragma once

#include <type_traits>
#include <utility>

#include "vectors.h"

namespace corom {

// Call `step` for 0 … COUNT - 1, each a constant: what is indexed by them stays in registers, which
// GCC does not make sure of for a loop that it unrolls.
template <int COUNT, typename Step>
[[gnu::always_inline]] inline void each(const Step& step) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (step(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, COUNT>());
}

constexpr int TILE = 6;  // rows, of TILE_VECTORS each

// Rows whose sums are so many that each is ready when its next product is. Fewer that are left are
// halved together with the tile before them. On CPUs with AVX-512 it was not tried.
constexpr int LEAST_ROWS = TILE_VECTORS == 1 ? 4 : 1;

// Call `tile.operator()<ROWS>(first)` for those of fewer than `ROWS + 1` rows that are left.
template <int ROWS, typename Tile>
inline void last_tile(int rows, int first, const Tile& tile) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      tile.template operator()<ROWS>(first);
    else
      last_tile<ROWS - 1>(rows, first, tile);
  }
}

// Call `tile.operator()<ROWS>(first)` for every TILE rows, then for what is left.
template <typename Tile>
inline void in_tiles(int rows, const Tile& tile) {
  int first = 0;
  while (first + TILE <= rows) {
    const int left = rows - first - TILE;
    if (left > 0 && left < LEAST_ROWS) {
      const int half = (TILE + left + 1) / 2;
      last_tile<TILE - 1>(half, first, tile);
      first += half;
      break;
    }
    tile.template operator()<TILE>(first);
    first += TILE;
  }
  last_tile<TILE - 1>(rows - first, first, tile);
}

}  // namespace corom
