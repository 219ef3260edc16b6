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

// A product in parts: each a panel of the weights times all rows or, where the panels do not go
// round, times some of the tiles that the rows make.
struct Cut {
  int rows, tiles, blocks;
  Cut(int row_count, int panels, int members)
      : rows(row_count),
        tiles((row_count + TILE - 1) / TILE),
        blocks(panels % members == 0 ? 1 : std::clamp(4 * members / panels, 1, tiles)) {}
};

}  // namespace corom
