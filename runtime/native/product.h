// Rows times weights.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "rows.h"
#include "share.h"
#include "sums.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// Four sums of sixteen columns for each of ROWS rows.
template <typename Number, int ROWS>
using Sums = typename Number::Sums[ROWS][4];

template <int ROWS, typename Step>
[[gnu::always_inline]] inline void each_of_block(const Step& step) {
  each<ROWS>([&](auto r) __attribute__((always_inline)) {
    each<4>([&](auto i) __attribute__((always_inline)) { step(r, i); });
  });
}

// The rows and the panel of one tile.
template <typename Number, int ROWS>
struct Factors {
  const typename Number::Value* values[ROWS];
  const float* scales[ROWS];
  const typename Number::Weight* weights;
  const char* ahead;  // what is fetched meanwhile: a line for each 16 lines of weights

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
        __m512i weight[4];
        each<4>([&](auto i) __attribute__((always_inline)) {
          weight[i] = _mm512_load_si512(weights + at * PANEL + 16 * Number::LANE * i);
        });
        each<ROWS>([&](auto r) __attribute__((always_inline)) {
          std::int32_t lane;
          std::memcpy(&lane, values[r] + at, sizeof lane);
          const __m512i value = _mm512_set1_epi32(lane);
          each<4>([&](auto i) __attribute__((always_inline)) {
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
      __m512 values[4];
      each<4>([&](auto i) __attribute__((always_inline)) { values[i] = result(r, i); });
      store(first + r, panel, values);
    });
  } else {
    __m512 values[ROWS][4];
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
    each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
      sums[r][i] = _mm512_load_ps(bias + 16 * i);
    });
    factors.add(0, rows.groups(), sums);
    store_tile<ROWS>(first, panel, store,
                     [&](auto r, auto i) __attribute__((always_inline)) { return sums[r][i]; });
  } else {
    const float* scales = weights.scales(panel);
    const auto add_span = [&](int span) __attribute__((always_inline)) {
      const std::int32_t* corrections = weights.corrections(panel) + span * PANEL;
      each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
        sums[r][i] = _mm512_load_si512(corrections + 16 * i);
      });
      factors.add(rows.first_group(span), rows.first_group(span + 1), sums);
    };
    const auto scaled = [&](__m512 sum, auto i) __attribute__((always_inline)) {
      return _mm512_fmadd_ps(sum, _mm512_load_ps(scales + 16 * i), _mm512_load_ps(bias + 16 * i));
    };
    if constexpr (ONE_SPAN) {
      add_span(0);
      store_tile<ROWS>(first, panel, store, [&](auto r, auto i) __attribute__((always_inline)) {
        return scaled(
            _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][i]), _mm512_set1_ps(factors.scales[r][0])), i);
      });
    } else {
      // In memory, as there are no registers left: the last sums go past it.
      __m512 total[ROWS][4];
      const auto added = [&](int span, auto r, auto i) __attribute__((always_inline)) {
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][i]),
                               _mm512_set1_ps(factors.scales[r][span]), total[r][i]);
      };
      add_span(0);
      each_of_block<ROWS>([&](auto r, auto i) __attribute__((always_inline)) {
        total[r][i] =
            _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][i]), _mm512_set1_ps(factors.scales[r][0]));
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
  for (int part = begin; part < end; part++) {
    const Cut::Part own = cut.part(part, weights.panels());
    in_tiles(own.last - own.first, [&]<int ROWS>(int row) {
      // Each tile fetches a part of the panels that come next, or their first tile would wait.
      const int sixteenth = std::min(row / TILE, 15);
      for (int p = own.panel; p < own.end_panel; p++) {
        const char* ahead = weights.ahead(p + cut.together, sixteenth, 16);
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
