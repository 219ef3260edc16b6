// Rows in tiles: as many at once as fit into the registers.
#pragma once

#include <type_traits>
#include <utility>

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

// Call `tile.operator()<ROWS>(first)` for every TILE rows, then once for what is left.
template <typename Tile>
inline void in_tiles(int rows, const Tile& tile) {
  int first = 0;
  for (; first + TILE <= rows; first += TILE) tile.template operator()<TILE>(first);
  last_tile<TILE - 1>(rows - first, first, tile);
}

}  // namespace corom
