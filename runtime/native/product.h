// Rows times weights.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "rows.h"
#include "share.h"
#include "tiles.h"
#include "vectors.h"
#include "weights.h"

namespace corom {

// Of sixteen columns each: the sums of a panel for ROWS rows.
template <typename Number, int ROWS>
using Sums = typename Number::Sums[ROWS][TILE_VECTORS];

template <int ROWS, typename Step>
[[gnu::always_inline]] inline void each_of_block(const Step& step) {
  each<ROWS>([&](auto r) __attribute__((always_inline)) {
    each<TILE_VECTORS>([&](auto i) __attribute__((always_inline)) { step(r, i); });
  });
}

// The rows and the panel of one tile.
template <typename Number, int ROWS>
struct Factors {
  const typename Number::Value* values[ROWS];
  const float* scales[ROWS];
  const typename Number::Weight* weights;
  const char* ahead;  // what is fetched meanwhile: a line for each 4 inputs' lanes

  Factors(const Rows<Number>& rows, int first, const int* order, const Weights<Number>& from,
          int panel, const char* to_fetch)
      : weights(from.panel(panel)), ahead(to_fetch) {
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      const int row = order ? order[first + r] : first + r;
      values[r] = rows.values(row);
      if constexpr (is_coded<Number>) scales[r] = rows.scales(row);
    });
  }

  // Add the products over groups `begin` to `end`.
  [[gnu::always_inline]] void add(int begin, int end, Sums<Number, ROWS>& sums) const {
    constexpr int STEPS = 4;
    for (int input = begin * GROUP; input < end * GROUP; input += STEPS * Number::LANE) {
      _mm_prefetch(ahead + input * int(CACHE_LINE) / (STEPS * Number::LANE), _MM_HINT_T0);
      each<STEPS>([&](auto step) __attribute__((always_inline)) {
        const int at = input + step * Number::LANE;
        Lanes weight[TILE_VECTORS];
        each<TILE_VECTORS>([&](auto i) __attribute__((always_inline)) {
          weight[i] = load_lanes(weights + at * PANEL + 16 * Number::LANE * i);
        });
        each<ROWS>([&](auto r) __attribute__((always_inline)) {
          const Lanes value = repeat(values[r] + at);
          each<TILE_VECTORS>([&](auto i) __attribute__((always_inline)) {
            sums[r][i] = add_products(sums[r][i], value, weight[i], Number());
          });
        });
      });
    }
  }
};

// Let `store` take the results `result(r, i)` of each of ROWS rows.
template <int ROWS, typename Store, typename Result>
[[gnu::always_inline]] inline void store_tile(int first, int panel, Store& store,
                                              const Result& result) {
  if constexpr (Store::SHORT) {
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      Vector values[TILE_VECTORS];
      each<TILE_VECTORS>([&](auto i) __attribute__((always_inline)) { values[i] = result(r, i); });
      store(first + r, panel, values);
    });
  } else {
    Vector values[ROWS][TILE_VECTORS];
    each_of_block<ROWS>([&](auto r, auto i)
                            __attribute__((always_inline)) { values[r][i] = result(r, i); });
#pragma GCC unroll 1
    for (int r = 0; r < ROWS; r++) store(first + r, panel, values[r]);
  }
}

// `store`, as that of written.h, takes the results of ROWS rows, from `first` on, and one panel.
template <typename Number, int ROWS, bool ONE_SPAN, typename Store>
[[gnu::noinline]] void product_tile(const Rows<Number>& rows, int first, const int* order,
                                    const Weights<Number>& weights, int panel, const char* ahead,
                                    Store& store) {
  const Factors<Number, ROWS> factors(rows, first, order, weights, panel, ahead);
  each<ROWS>([&](auto r) __attribute__((always_inline)) { store.expect(first + r, panel); });
  const float* bias = weights.bias(panel);
  Sums<Number, ROWS> sums;
  if constexpr (!is_coded<Number>) {
    each_of_block<ROWS>([&](auto r, auto i)
                            __attribute__((always_inline)) { sums[r][i] = load(bias + 16 * i); });
    factors.add(0, rows.groups(), sums);
    store_tile<ROWS>(first, panel, store,
                     [&](auto r, auto i) __attribute__((always_inline)) { return sums[r][i]; });
  } else {
    const float* scales = weights.scales(panel);
    const auto add_span = [&](int span) __attribute__((always_inline)) {
      const std::int32_t* corrections = weights.corrections(panel) + span * PANEL;
      each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
        sums[r][i] = load_integers(corrections + 16 * i);
      });
      factors.add(rows.first_group(span), rows.first_group(span + 1), sums);
    };
    const auto scaled = [&](Vector sum, auto i) __attribute__((always_inline)) {
      return fmadd(sum, load(scales + 16 * i), load(bias + 16 * i));
    };
    if constexpr (ONE_SPAN) {
      add_span(0);
      store_tile<ROWS>(first, panel, store, [&](auto r, auto i) __attribute__((always_inline)) {
        return scaled(mul(in_fp32(sums[r][i]), set1(factors.scales[r][0])), i);
      });
    } else {
      // In memory, as there are no registers left: the last sums go past it.
      Vector total[ROWS][TILE_VECTORS];
      const auto added = [&](int span, auto r, auto i) __attribute__((always_inline)) {
        return fmadd(in_fp32(sums[r][i]), set1(factors.scales[r][span]), total[r][i]);
      };
      add_span(0);
      each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
        total[r][i] = mul(in_fp32(sums[r][i]), set1(factors.scales[r][0]));
      });
      const int last = rows.spans() - 1;
      for (int span = 1; span < last; span++) {
        add_span(span);
        each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
          total[r][i] = added(span, r, i);
        });
      }
      add_span(last);
      store_tile<ROWS>(first, panel, store, [&](auto r, auto i) __attribute__((always_inline)) {
        return scaled(added(last, r, i), i);
      });
    }
  }
}

// Parts `begin` to `end` of a product, as `cut` has them, a tile after the other. `order`: which
// rows of `rows`; null is all.
template <typename Number, typename Store>
void product(const Rows<Number>& rows, const int* order, const Weights<Number>& weights,
             const Cut& cut, int begin, int end, Store&& store) {
  constexpr int SHARES = 4 * TILE_VECTORS;  // as Factors fetches a line for so many
  for (int part = begin; part < end; part++) {
    const Cut::Part own = cut.part(part, weights.panels());
    in_tiles(own.last - own.first, [&]<int ROWS>(int row) {
      // Each tile fetches a part of the panels that come next, or their first tile would wait.
      const int share = std::min(row / TILE, SHARES - 1);
      for (int p = own.panel; p < own.end_panel; p++) {
        const char* ahead = weights.ahead(p + cut.together, share, SHARES);
        if constexpr (is_coded<Number>) {
          if (rows.spans() == 1) {
            product_tile<Number, ROWS, true>(rows, own.first + row, order, weights, p, ahead,
                                             store);
            continue;
          }
        }
        product_tile<Number, ROWS, false>(rows, own.first + row, order, weights, p, ahead, store);
      }
    });
  }
}

}  // namespace corom
