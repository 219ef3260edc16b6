// How work is divided among threads.
#pragma once

#include <algorithm>

#include "tiles.h"

namespace corom {

// Part `member` of `members` of 0 … count.
struct Share {
  int begin, end;
  Share(int count, int member, int members)
      : begin(int(long(count) * member / members)),
        end(int(long(count) * (member + 1) / members)) {}
};

// A product in parts: each some panels of the weights, `together`, times all rows or, where they
// do not go round, times some of the tiles that the rows make.
struct Cut {
  int rows, together, tile, tiles, units, blocks;
  // `tile_rows`: of a tile.
  Cut(int row_count, int panels, int panels_together, int members, int tile_rows = TILE)
      : rows(row_count),
        together(panels_together),
        tile(tile_rows),
        tiles((row_count + tile - 1) / tile),
        units((panels + together - 1) / together),
        blocks(units % members == 0 ? 1 : std::clamp(4 * members / units, 1, tiles)) {}
  int parts() const { return units * blocks; }

  // Of one part: rows, and panels of weights that have `panels`.
  struct Part {
    int first, last, panel, end_panel;
  };
  Part part(int index, int panels) const {
    const Share block(tiles, index % blocks, blocks);
    const int panel = index / blocks * together;
    return {block.begin * tile, std::min(block.end * tile, rows), panel,
            std::min(panel + together, panels)};
  }
};

}  // namespace corom
