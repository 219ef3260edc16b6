// Rows times weights on CPUs that multiply tiles (AMX): sixteen rows of 64 bytes with as many of
// sixteen columns in one instruction. Of codes the sums are those of product.h, bit for bit.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "product.h"
#include "rows.h"
#include "share.h"
#include "tiles.h"
#include "weights.h"

namespace corom {

// Ask the system to keep tiles for the threads of this process. Whether it does.
inline bool ask_for_amx() {
  constexpr long PERMISSION = 0x1023, TILE_DATA = 18;  // of the system call; the state's number
  return syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0;
}

// The tiles of a thread while it multiplies some rows, at most AMX_ROWS, with columns of weights.
// 0 to 3 have sums. Of more rows than a tile has, 4 and 5 have values, 6 and 7 weights of 32
// columns; else 4 has values, and 5 to 7 in turns weights of 64. As assembly, like every
// instruction that not all CPUs with AVX-512 have.
class AmxTiles {
 public:
  static constexpr int ROWS = 16, BYTES = 64;

  explicit AmxTiles(int rows) {
    struct {
      std::uint8_t palette = 1, start = 0, none[14] = {};
      std::uint16_t bytes[16] = {BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES, BYTES};
      std::uint8_t rows[16] = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS};
    } shapes;
    if (rows > ROWS)
      for (int tile : {2, 3, 5}) shapes.rows[tile] = std::uint8_t(rows - ROWS);
    else
      for (int tile : {0, 1, 2, 3, 4}) shapes.rows[tile] = std::uint8_t(rows);
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() { asm volatile("tilerelease"); }

  // Rows are `step` bytes apart; 0 takes the same one for all.
  template <int TILE>
  [[gnu::always_inline]] static void load(const void* from, std::size_t step) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(TILE), "r"(from), "r"(step) : "memory");
  }
  template <int TILE>
  [[gnu::always_inline]] static void store(void* to, std::size_t step) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(TILE), "r"(to), "r"(step) : "memory");
  }
  template <int SUMS, int VALUES, int WEIGHTS>
  [[gnu::always_inline]] static void add_products(Int8) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(VALUES), "i"(WEIGHTS));
  }
  template <int SUMS, int VALUES, int WEIGHTS>
  [[gnu::always_inline]] static void add_products(Bf16) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(VALUES), "i"(WEIGHTS));
  }
};

constexpr int AMX_ROWS = 2 * AmxTiles::ROWS;

// Some rows and a panel.
template <typename Number>
class AmxFactors {
 public:
  AmxFactors(const Rows<Number>& rows, int first, int count, const Weights<Number>& weights,
             int panel, const char* ahead, int lines)
      : values_(reinterpret_cast<const char*>(rows.values(first))),
        row_bytes_(rows.groups() * GROUP * sizeof(typename Number::Value)),
        count_(count),
        weights_(reinterpret_cast<const char*>(weights.panel(panel))),
        ahead_(ahead),
        lines_(lines) {}

  // sums (count, PANEL), `step` bytes apart = initial (PANEL,) + products over groups `begin` to
  // `end`
  void operator()(int begin, int end, const void* initial, void* sums, std::size_t step) {
    const auto* from = static_cast<const char*>(initial);
    auto* to = static_cast<char*>(sums);
    if (count_ <= Tiles::ROWS) {
      add_to_sixteen(begin * STEPS, end * STEPS, from, to, step);
    } else {
      for (int half = 0; half < 2; half++) {
        add_to_more(begin * STEPS, end * STEPS, 2 * half, from, to, step);
      }
    }
  }

 private:
  using Tiles = AmxTiles;
  // Bytes of weights: 64 columns of one lane, and what a tile of values is multiplied with.
  static constexpr std::size_t LANE_BYTES = 4 * PANEL, STEP_BYTES = Tiles::ROWS * LANE_BYTES;
  static constexpr int STEPS = GROUP * int(sizeof(typename Number::Value)) / Tiles::BYTES;

  void fetch() {
    for (int line = 0; line < lines_; line++, ahead_ += CACHE_LINE) {
      _mm_prefetch(ahead_, _MM_HINT_T1);
    }
  }

  // Columns from tile `first` on.
  void add_to_more(int begin, int end, int first, const char* initial, char* to,
                   std::size_t step) {
    const std::size_t column = first * std::size_t(Tiles::BYTES);
    const char *low = initial + column, *high = low + Tiles::BYTES;
    Tiles::load<0>(low, 0), Tiles::load<1>(high, 0);
    Tiles::load<2>(low, 0), Tiles::load<3>(high, 0);
    for (int at = begin; at < end; at++) {
      const char* values = values_ + std::size_t(at) * Tiles::BYTES;
      const char* weights = weights_ + std::size_t(at) * STEP_BYTES + column;
      Tiles::load<4>(values, row_bytes_);
      Tiles::load<6>(weights, LANE_BYTES);
      Tiles::add_products<0, 4, 6>(Number());
      Tiles::load<7>(weights + Tiles::BYTES, LANE_BYTES);
      Tiles::add_products<1, 4, 7>(Number());
      Tiles::load<5>(values + Tiles::ROWS * row_bytes_, row_bytes_);
      Tiles::add_products<2, 5, 6>(Number());
      Tiles::add_products<3, 5, 7>(Number());
      fetch();
    }
    to += column;
    Tiles::store<0>(to, step), Tiles::store<1>(to + Tiles::BYTES, step);
    to += Tiles::ROWS * step;
    Tiles::store<2>(to, step), Tiles::store<3>(to + Tiles::BYTES, step);
  }

  void add_to_sixteen(int begin, int end, const char* initial, char* to, std::size_t step) {
    each<4>([&](auto i) __attribute__((always_inline)) {
      Tiles::load<i>(initial + i * Tiles::BYTES, 0);
    });
    for (int at = begin; at < end; at++) {
      const char* weights = weights_ + std::size_t(at) * STEP_BYTES;
      Tiles::load<4>(values_ + std::size_t(at) * Tiles::BYTES, row_bytes_);
      each<4>([&](auto i) __attribute__((always_inline)) {
        Tiles::load<5 + i % 3>(weights + i * Tiles::BYTES, LANE_BYTES);
        Tiles::add_products<i, 4, 5 + i % 3>(Number());
      });
      fetch(), fetch();
    }
    each<4>([&](auto i) __attribute__((always_inline)) {
      Tiles::store<i>(to + i * Tiles::BYTES, step);
    });
  }

  const char* values_;
  std::size_t row_bytes_;
  int count_;
  const char* weights_;
  const char* ahead_;
  int lines_;
};

// `store` takes the results of some rows, from `first` on, and of panels `panel` to `end`.
template <typename Number, typename Store>
void amx_block(const Rows<Number>& rows, int first, int count, const Weights<Number>& weights,
               int panel, int end, const char* ahead, int lines, Store& store) {
  constexpr int MOST = Store::PANELS;
  constexpr std::size_t STEP = 4 * MOST * PANEL;
  alignas(64) float totals[AMX_ROWS][MOST * PANEL];
  const __m512 nothing = _mm512_setzero_ps();
  for (int p = panel; p < end; p++) {
    AmxFactors<Number> add(rows, first, count, weights, p, ahead, lines);
    float* own = totals[0] + (p - panel) * PANEL;
    if constexpr (!is_coded<Number>) {
      add(0, rows.groups(), weights.bias(p), own, STEP);
    } else {
      for (int span = 0; span < rows.spans(); span++) {
        alignas(64) std::int32_t sums[AMX_ROWS][PANEL];
        add(rows.first_group(span), rows.first_group(span + 1),
            weights.corrections(p) + span * PANEL, sums, sizeof sums[0]);
        for (int r = 0; r < count; r++) {
          const __m512 scale = _mm512_set1_ps(rows.scales(first + r)[span]);
          float* total = own + std::size_t(r) * MOST * PANEL;
          each<4>([&](auto i) __attribute__((always_inline)) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[r] + 16 * i));
            const __m512 before = span == 0 ? nothing : _mm512_load_ps(total + 16 * i);
            _mm512_store_ps(total + 16 * i, _mm512_fmadd_ps(sum, scale, before));
          });
        }
      }
    }
    ahead = weights.ahead(p, 0);
  }
  for (int r = 0; r < count; r++) {
    for (int p = panel; p < end; p++) {
      __m512 values[4];
      each<4>([&](auto i) __attribute__((always_inline)) {
        values[i] = _mm512_load_ps(totals[r] + (p - panel) * PANEL + 16 * i);
        if constexpr (is_coded<Number>) {
          values[i] = _mm512_fmadd_ps(values[i], _mm512_load_ps(weights.scales(p) + 16 * i),
                                      _mm512_load_ps(weights.bias(p) + 16 * i));
        }
      });
      store(first + r, p, values);
    }
  }
}

// As `product` of product.h, of all rows.
template <typename Number, typename Store>
void amx_product(const Rows<Number>& rows, const Weights<Number>& weights, const Cut& cut,
                 int begin, int end, Store&& store) {
  for (int part = begin; part < end; part++) {
    const Share block(cut.tiles, part % cut.blocks, cut.blocks);
    const int first = block.begin * cut.tile, last = std::min(block.end * cut.tile, cut.rows);
    const int panel = part / cut.blocks * cut.together;
    const int end_panel = std::min(panel + cut.together, weights.panels());
    for (int row = first; row < last; row += AMX_ROWS) {
      const int count = std::min(AMX_ROWS, last - row);
      const AmxTiles tiles(count);
      amx_block(rows, row, count, weights, panel, end_panel, weights.ahead(panel, 0), 0, store);
    }
  }
}

}  // namespace corom
