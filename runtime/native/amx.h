// Rows times weights on CPUs that multiply tiles (AMX): sixteen rows of 64 bytes with as many of
// sixteen columns in one instruction. Of codes the sums are those of product.h, bit for bit.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "amx_tiles.h"
#include "buffer.h"
#include "rows.h"
#include "share.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// Sums of some rows, from `first` on, and half a panel: of one span of the rows.
struct AmxBlock {
  static constexpr int ROWS = 2 * AmxTiles::ROWS, COLUMNS = PANEL / 2;

  int first, count, panel, half, span;
};

template <typename Number>
using AmxSum = std::conditional_t<is_coded<Number>, std::int32_t, float>;

// What becomes of a block's sums, a row after the other. Of codes: FIRST and LAST, of the spans.
template <typename Number, bool FIRST, bool LAST, typename Output>
struct AmxFinish {
  using Sum = AmxSum<Number>;

  int left;  // rows
  const Sum* sums;
  Output output;
  // Of codes alone
  const float* row_scales;
  int spans;
  float* totals;
  Vector scales[2], bias[2];

  AmxFinish(const Rows<Number>& rows, const Weights<Number>& weights, const AmxBlock& block,
            const Sum* from, float* over_spans, const Output& into)
      : left(block.count), sums(from), output(into) {
    if constexpr (is_coded<Number>) {
      row_scales = rows.scales(block.first) + block.span;
      spans = rows.spans();
      totals = over_spans;
      for (int i = 0; i < 2; i++) {
        const int column = block.half * AmxBlock::COLUMNS + 16 * i;
        scales[i] = load(weights.scales(block.panel) + column);
        bias[i] = load(weights.bias(block.panel) + column);
      }
    }
  }

  [[gnu::always_inline]] void row() {
    Vector values[2];
    if constexpr (!is_coded<Number>) {
      for (int i = 0; i < 2; i++) values[i] = load(sums + 16 * i);
    } else {
      const Vector scale = set1(*row_scales);
      for (int i = 0; i < 2; i++) {
        const Vector sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * i));
        values[i] = FIRST ? mul(sum, scale) : fmadd(sum, scale, load(totals + 16 * i));
        if constexpr (LAST)
          values[i] = fmadd(values[i], scales[i], bias[i]);
        else
          store(totals + 16 * i, values[i]);
      }
      row_scales += spans;
      totals += AmxBlock::COLUMNS;
    }
    sums += AmxBlock::COLUMNS;
    if constexpr (LAST) output(values);
  }
};

// The products of a block: rows `row_bytes` apart, times weights, in `steps`.
template <typename Number>
struct AmxFactors {
  // Bytes of weights: 64 columns of one lane, and what a tile of values is multiplied with.
  static constexpr std::size_t LANE_BYTES = 4 * PANEL, STEP_BYTES = AmxTiles::ROWS * LANE_BYTES;
  static constexpr std::size_t SUMS_BYTES = 4 * AmxBlock::COLUMNS;
  static constexpr int STEPS = GROUP * int(sizeof(typename Number::Value)) / AmxTiles::BYTES;

  const char *left, *right;
  std::size_t row_bytes;
  int steps;
  const void* initial;  // (COLUMNS,): what sums begin with
  const char* ahead;    // what is fetched meanwhile: `lines` at each step
  int lines;

  // sums (TILES · 16, COLUMNS). Meanwhile another block is finished.
  template <int TILES, typename Finish>
  [[gnu::noinline]] void multiply(void* sums, Finish finish) const {
    using Tiles = AmxTiles;
    const char *l = left, *r = right, *first = static_cast<const char*>(initial);
    const char* next = ahead;
    const std::size_t row = row_bytes, fetched = std::size_t(lines) * CACHE_LINE;
    Tiles::load<0>(first, 0), Tiles::load<1>(first + Tiles::BYTES, 0);
    if constexpr (TILES == 2) Tiles::load<2>(first, 0), Tiles::load<3>(first + Tiles::BYTES, 0);
    // Between any two products, or the CPU would not come upon the next ones in time.
    const int products = 2 * TILES * steps, rows = finish.left;
    int due = 0;
    const auto meanwhile = [&]() __attribute__((always_inline)) {
      for (due += rows; due >= products; due -= products) finish.row();
    };
    for (int step = steps; step > 0; step--, l += Tiles::BYTES, r += STEP_BYTES) {
      Tiles::load<4>(l, row);
      Tiles::load_passing<6>(r, LANE_BYTES);
      Tiles::add_products<0, 4, 6>(Number());
      meanwhile();
      Tiles::load_passing<7>(r + Tiles::BYTES, LANE_BYTES);
      Tiles::add_products<1, 4, 7>(Number());
      meanwhile();
      if constexpr (TILES == 2) {
        Tiles::load<5>(l + Tiles::ROWS * row, row);
        Tiles::add_products<2, 5, 6>(Number());
        meanwhile();
        Tiles::add_products<3, 5, 7>(Number());
        meanwhile();
      }
      for (const char* end = next + fetched; next < end; next += CACHE_LINE) {
        _mm_prefetch(next, _MM_HINT_T1);
      }
    }
    char* to = static_cast<char*>(sums);
    Tiles::store<0>(to, SUMS_BYTES), Tiles::store<1>(to + Tiles::BYTES, SUMS_BYTES);
    to += Tiles::ROWS * SUMS_BYTES;
    if constexpr (TILES == 2)
      Tiles::store<2>(to, SUMS_BYTES), Tiles::store<3>(to + Tiles::BYTES, SUMS_BYTES);
  }
};

// All rows times panels, a block after the other. Tiles are multiplied beside everything else that
// the CPU does, so while a block is multiplied the one before is finished.
template <typename Number, typename Store>
class AmxProduct {
 public:
  AmxProduct(const Rows<Number>& rows, const Weights<Number>& weights, Store& store)
      : rows_(rows), weights_(weights), store_(store) {}

  // Meanwhile fetch from `ahead` on what a later product takes, `lines` at each step.
  void begin(const AmxBlock& block, const char* ahead, int lines) {
    Sum* sums = sums_[1 - begun_];
    const AmxFactors<Number> factors = this->factors(block, ahead, lines);
    finishing([&](const auto& finish) {
      if (block.count > AmxTiles::ROWS)
        factors.template multiply<2>(sums, finish);
      else
        factors.template multiply<1>(sums, finish);
    });
    begun_ = 1 - begun_;
    last_ = block;
  }

  // Finish the last block too.
  void end() {
    finishing([&](auto finish) {
      for (; finish.left > 0; finish.left--) finish.row();
    });
  }

 private:
  using Sum = AmxSum<Number>;

  AmxFactors<Number> factors(const AmxBlock& block, const char* ahead, int lines) const {
    using Factors = AmxFactors<Number>;
    const int first = is_coded<Number> ? rows_.first_group(block.span) : 0;
    const int end = is_coded<Number> ? rows_.first_group(block.span + 1) : rows_.groups();
    const int column = block.half * AmxBlock::COLUMNS;
    const void* initial;
    if constexpr (is_coded<Number>)
      initial = weights_.corrections(block.panel) + block.span * PANEL + column;
    else
      initial = weights_.bias(block.panel) + column;
    return {reinterpret_cast<const char*>(rows_.values(block.first) + first * GROUP),
            reinterpret_cast<const char*>(weights_.panel(block.panel) + first * GROUP * PANEL +
                                          column * Number::LANE),
            std::size_t(rows_.groups()) * GROUP * sizeof(typename Number::Value),
            (end - first) * Factors::STEPS,
            initial,
            ahead + std::size_t(first) * Factors::STEPS * lines * CACHE_LINE,
            lines};
  }

  // Call `work` with what finishes the last block.
  template <typename Work>
  void finishing(const Work& work) {
    auto output = store_.rows(last_.first, last_.panel, last_.half);
    const auto with = [&]<bool FIRST, bool LAST>() {
      work(AmxFinish<Number, FIRST, LAST, decltype(output)>(rows_, weights_, last_, sums_[begun_],
                                                            totals_, output));
    };
    if constexpr (is_coded<Number>) {
      const bool first = last_.span == 0, last = last_.span + 1 == rows_.spans();
      if (!last)
        return first ? with.template operator()<true, false>()
                     : with.template operator()<false, false>();
      if (!first) return with.template operator()<false, true>();
    }
    with.template operator()<true, true>();
  }

  const Rows<Number>& rows_;
  const Weights<Number>& weights_;
  Store& store_;
  int begun_ = 0;  // which sums are the last block's
  AmxBlock last_{0, 0, 0, 0, 0};
  alignas(CACHE_LINE) Sum sums_[2][AmxBlock::ROWS * AmxBlock::COLUMNS];
  alignas(CACHE_LINE) float totals_[AmxBlock::ROWS * AmxBlock::COLUMNS];  // over spans so far
};

// As `product` of product.h, of all rows: those behind the last of a tile are read, not written.
template <typename Number, typename Store>
void amx_product(const Rows<Number>& rows, const Weights<Number>& weights, const Cut& cut,
                 int begin, int end, Store&& store) {
  const AmxTiles tiles;
  AmxProduct<Number, std::remove_reference_t<Store>> product(rows, weights, store);
  const int spans = is_coded<Number> ? rows.spans() : 1;
  constexpr int STEP_LINES = AmxFactors<Number>::STEP_BYTES / CACHE_LINE;
  for (int part = begin; part < end; part++) {
    const Cut::Part own = cut.part(part, weights.panels());
    // Each half fetches its part of the panels that come next, so many lines at each step.
    const int halves = 2 * ((own.last - own.first + AmxBlock::ROWS - 1) / AmxBlock::ROWS);
    const int lines = (STEP_LINES + halves - 1) / halves;
    for (int row = own.first, number = 0; row < own.last; row += AmxBlock::ROWS, number += 2) {
      const int count = std::min(AmxBlock::ROWS, own.last - row);
      for (int p = own.panel; p < own.end_panel; p++) {
        for (int half : {0, 1}) {
          const char* ahead = weights.ahead(p + cut.together, number + half, halves);
          for (int span = 0; span < spans; span++) {
            product.begin({row, count, p, half, span}, ahead, lines);
          }
        }
      }
    }
  }
  product.end();
}

}  // namespace corom
