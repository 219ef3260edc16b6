// Rows times weights.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "rows.h"
#include "share.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// sums += inputs · weights, LANE products a value. As assembly because GCC 12 copies sums from
// register to register around the intrinsics, and because not all CPUs here have all of these.
inline void add_products(__m512& sums, __m512i inputs, __m512i weights, Fp32) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
}
inline void add_products(__m512& sums, __m512i inputs, __m512i weights, Bf16) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
}
inline void add_products(__m512i& sums, __m512i inputs, __m512i weights, Int8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
}

// Four sums of sixteen columns for each of ROWS rows.
template <typename Number, int ROWS>
using Sums = typename Number::Sums[ROWS][4];

// Add the products of ROWS rows and one panel, over GROUP values from `first` on.
template <typename Number, int ROWS>
[[gnu::always_inline]] inline void add_panel(const typename Number::Value* const rows[], int first,
                                             const typename Number::Weight* weights,
                                             Sums<Number, ROWS>& sums) {
#pragma GCC unroll 4
  for (int input = 0; input < GROUP; input += Number::LANE, weights += PANEL * Number::LANE) {
    __m512i weight[4];
    each<4>([&](auto i) __attribute__((always_inline)) {
      weight[i] = _mm512_load_si512(weights + 16 * Number::LANE * i);
    });
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      std::int32_t lane;
      std::memcpy(&lane, rows[r] + first + input, sizeof lane);
      const __m512i values = _mm512_set1_epi32(lane);
      each<4>([&](auto i) __attribute__((always_inline)) {
        add_products(sums[r][i], values, weight[i], Number());
      });
    });
  }
}

// `store(row, panel, values[4])` takes 64 results of each of ROWS rows, from `first` on.
template <typename Number, int ROWS, typename Store>
[[gnu::noinline]] void product_tile(const Rows<Number>& rows, int first, const int* order,
                                    const Weights<Number>& weights, int panel, const Store& store) {
  const typename Number::Value* values[ROWS];
  each<ROWS>([&](auto r) __attribute__((always_inline)) {
    values[r] = rows.values(order ? order[first + r] : first + r);
  });
  __m512 results[ROWS][4];
  if constexpr (!is_coded<Number>) {
    Sums<Number, ROWS> sums;
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      each<4>([&](auto i) __attribute__((always_inline)) {
        sums[r][i] = _mm512_load_ps(weights.bias(panel) + 16 * i);
      });
    });
    for (int first_input = 0; first_input < rows.groups() * GROUP; first_input += GROUP) {
      add_panel<Number, ROWS>(values, first_input, weights.panel(panel) + first_input * PANEL,
                              sums);
    }
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      each<4>([&](auto i) __attribute__((always_inline)) { results[r][i] = sums[r][i]; });
    });
  } else {
    const float* scales[ROWS];
    __m512 total[ROWS][4];
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      scales[r] = rows.scales(order ? order[first + r] : first + r);
      each<4>([&](auto i) __attribute__((always_inline)) { total[r][i] = _mm512_setzero_ps(); });
    });
    for (int group = 0; group < rows.groups(); group++) {
      const std::int32_t* corrections = weights.corrections(panel) + group * PANEL;
      Sums<Number, ROWS> sums;
      each<ROWS>([&](auto r) __attribute__((always_inline)) {
        each<4>([&](auto i) __attribute__((always_inline)) {
          sums[r][i] = _mm512_load_si512(corrections + 16 * i);
        });
      });
      add_panel<Number, ROWS>(values, group * GROUP, weights.panel(panel) + group * GROUP * PANEL,
                              sums);
      each<ROWS>([&](auto r) __attribute__((always_inline)) {
        const __m512 scale = _mm512_set1_ps(scales[r][group]);
        each<4>([&](auto i) __attribute__((always_inline)) {
          total[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][i]), scale, total[r][i]);
        });
      });
    }
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      each<4>([&](auto i) __attribute__((always_inline)) {
        results[r][i] = _mm512_fmadd_ps(total[r][i], _mm512_load_ps(weights.scales(panel) + 16 * i),
                                        _mm512_load_ps(weights.bias(panel) + 16 * i));
      });
    });
  }
#pragma GCC unroll 1
  for (int r = 0; r < ROWS; r++) store(first + r, panel, results[r]);
}

// Parts `begin` to `end` of a product, as `cut` has them. `order`: which rows of `rows`; null is
// all.
template <typename Number, typename Store>
void product(const Rows<Number>& rows, const int* order, const Weights<Number>& weights,
             const Cut& cut, int begin, int end, const Store& store) {
  for (int part = begin; part < end; part++) {
    const Share block(cut.tiles, part % cut.blocks, cut.blocks);
    const int first = block.begin * TILE, last = std::min(block.end * TILE, cut.rows);
    in_tiles(last - first, [&]<int ROWS>(int row) {
      product_tile<Number, ROWS>(rows, first + row, order, weights, part / cut.blocks, store);
    });
  }
}

}  // namespace corom
