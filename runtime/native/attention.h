// Attention within one text. No mask: a text has no padding here.
#pragma once

#include <algorithm>

#include "amx_tiles.h"
#include "buffer.h"
#include "math.h"
#include "operands.h"
#include "rows.h"
#include "tiles.h"
#include "vectors.h"

namespace corom {

constexpr int MOST_HEADS = 4;  // attended at once

// What a thread needs to attend to texts of up to `tokens` tokens.
struct AttentionSpace {
  static constexpr int ROWS = 48;  // queries at once, so that memory grows with the text alone

  Buffer<float> keys;    // (heads, HEAD / LANE, padded tokens)
  Buffer<float> values;  // (heads, padded tokens / LANE, HEAD), unless taken where they are
  Buffer<float> scores;  // (ROWS, padded tokens)
  Buffer<float> mixed;   // (ROWS, heads, HEAD)

  template <typename Factor>
  void reserve(int tokens, int heads) {
    keys.reserve(std::size_t(heads) * HEAD * padded(tokens) / Factor::LANE);
    if constexpr (Factor::LANE > 1)
      values.reserve(std::size_t(heads) * HEAD * padded_pairs(tokens) / Factor::LANE);
    scores.reserve(std::size_t(ROWS) * padded(tokens));
    mixed.reserve(std::size_t(ROWS) * heads * HEAD);
  }
};

template <typename Factor, int ROWS, int VECTORS>
[[gnu::always_inline]] inline void dense_tile(Operand left, Operand right, int inner, float* out,
                                              int out_step) {
  Vector sums[ROWS][VECTORS];
  each<ROWS>([&](auto r) __attribute__((always_inline)) {
    each<VECTORS>([&](auto v) __attribute__((always_inline)) { sums[r][v] = zero(); });
  });
  for (int k = 0; k < inner; k++) {
    Lanes factors[VECTORS];
    each<VECTORS>([&](auto v) __attribute__((always_inline)) {
      factors[v] = loadu_lanes(right.row(k).lanes + 16 * v);
    });
    each<ROWS>([&](auto r) __attribute__((always_inline)) {
      const Lanes lane = repeat(left.row(r).lanes + k);
      each<VECTORS>([&](auto v) __attribute__((always_inline)) {
        sums[r][v] = add_products(sums[r][v], lane, factors[v], Factor());
      });
    });
  }
  each<ROWS>([&](auto r) __attribute__((always_inline)) {
    each<VECTORS>([&](auto v) __attribute__((always_inline)) {
      storeu(out + std::size_t(r) * out_step + 16 * v, sums[r][v]);
    });
  });
}

// out (rows, 16 · VECTORS) = left (rows, inner) · right (inner, 16 · VECTORS), lane by lane
template <typename Factor, int VECTORS>
void dense(Operand left, int rows, Operand right, int inner, float* out, int out_step) {
  in_tiles(rows, [&]<int ROWS>(int first) {
    constexpr int AT_ONCE = std::min(VECTORS, TILE_VECTORS);
    for (int v = 0; v < VECTORS; v += AT_ONCE) {
      dense_tile<Factor, ROWS, AT_ONCE>(left.row(first), right.from(16 * v), inner,
                                        out + std::size_t(first) * out_step + 16 * v, out_step);
    }
  });
}

inline void softmax(float* scores, int tokens) {
  const int width = padded(tokens);
  Vector largest = set1(-3e38f);
  for (int t = 0; t < width; t += 16) {
    largest = max(largest, first_of(tokens - t, loadu(scores + t), largest));
  }
  const Vector top = set1(max_of(largest));
  Vector sum = zero();
  for (int t = 0; t < width; t += 16) {
    const Vector raw = exponential(sub(loadu(scores + t), top));
    const Vector weight = first_of(tokens - t, raw, zero());
    sum = add(sum, weight);
    storeu(scores + t, weight);
  }
  const Vector share = set1(1.0f / sum_of(sum));
  for (int t = 0; t < width; t += 16) {
    storeu(scores + t, mul(loadu(scores + t), share));
  }
}

// out (rows, 16 · COLUMNS) = left (rows, 32 · inner) · right (16 · inner, 16 · COLUMNS), in bf16 by
// tiles: rows behind the last of a tile are read and written too.
template <int COLUMNS>
void dense_in_tiles(Operand left, int rows, Operand right, int inner, float* out, int out_step) {
  using Tiles = AmxTiles;
  const std::size_t left_step = left.step * sizeof(float), right_step = right.step * sizeof(float);
  for (int row = 0; row < rows; row += Tiles::ROWS, out += std::size_t(Tiles::ROWS) * out_step) {
    each<COLUMNS>([&](auto i) __attribute__((always_inline)) { Tiles::clear<i>(); });
    for (int k = 0; k < inner; k++) {
      Tiles::load<4>(left.row(row).from(16 * k).lanes, left_step);
      each<COLUMNS>([&](auto i) __attribute__((always_inline)) {
        Tiles::load<5 + i % 3>(right.row(16 * k).from(16 * i).lanes, right_step);
        Tiles::add_products<i, 4, 5 + i % 3>(Bf16());
      });
    }
    each<COLUMNS>([&](auto i) __attribute__((always_inline)) {
      Tiles::store<i>(out + 16 * i, out_step * sizeof(float));
    });
  }
}

// As `dense`, or in tiles: then rows behind the last and lanes behind `inner` of its last tile are
// multiplied too.
template <typename Factor, bool IN_TILES, int VECTORS>
void multiply(Operand left, int rows, Operand right, int inner, float* out, int out_step) {
  if constexpr (IN_TILES)
    dense_in_tiles<VECTORS>(left, rows, right, (inner + 15) / 16, out, out_step);
  else
    dense<Factor, VECTORS>(left, rows, right, inner, out, out_step);
}

// scores (rows, padded tokens) of queries (rows, HEAD) for keys, turned
template <typename Factor, bool IN_TILES>
void score_keys(Operand queries, int rows, Operand keys, float* scores) {
  const int width = keys.step, inner = HEAD / Factor::LANE;
  int t = 0;
  for (; t + 64 <= width; t += 64) {
    multiply<Factor, IN_TILES, 4>(queries, rows, keys.from(t), inner, scores + t, width);
  }
  for (; t + 32 <= width; t += 32) {
    multiply<Factor, IN_TILES, 2>(queries, rows, keys.from(t), inner, scores + t, width);
  }
  for (; t < width; t += 16) {
    multiply<Factor, IN_TILES, 1>(queries, rows, keys.from(t), inner, scores + t, width);
  }
}

// Rows `first_row` … of `into` get `count` rows of `mixed`, as their span `span`.
template <typename Number>
void write_mixed(const float* mixed, int step, int count, Rows<Number>& into, int first_row,
                 int span) {
  for (int r = 0; r < count; r++) {
    const float* row = mixed + std::size_t(r) * step;
    encode(reinterpret_cast<const Vector*>(row), into, first_row + r, span);
  }
}

// Attend with the `tokens` of a text to themselves, in the heads that make up span `span` of
// `into`, and write what is gathered as its rows from `first_row` on. Queries, keys and values,
// a row a token, begin with the first of these heads. The queries carry the scores' scale.
// `Factor`: what they are, and what is multiplied in both products.
template <typename Factor, bool IN_TILES, typename Number>
void attend(Operand queries, Operand keys, Operand values, int tokens, AttentionSpace& space,
            Rows<Number>& into, int first_row, int span) {
  constexpr int LANE = Factor::LANE;
  const int heads = into.first_group(span + 1) - into.first_group(span);
  const int width = padded(tokens), lanes = HEAD * width / LANE;
  Operand keys_of[MOST_HEADS], values_of[MOST_HEADS];
  for (int head = 0; head < heads; head++) {
    const std::size_t at = std::size_t(head) * lanes;
    const std::size_t at_values = std::size_t(head) * HEAD * padded_pairs(tokens) / LANE;
    const int lane = head * HEAD / LANE;
    keys_of[head] = turned<Factor>(keys.from(lane), tokens, space.keys.at(at));
    values_of[head] = summed(values.from(lane), tokens, space.values, at_values, Factor());
  }
  float* scores = space.scores.at(0);
  for (int first = 0; first < tokens; first += AttentionSpace::ROWS) {
    const int count = std::min(tokens - first, AttentionSpace::ROWS);
    for (int head = 0; head < heads; head++) {
      score_keys<Factor, IN_TILES>(queries.row(first).from(head * HEAD / LANE), count,
                                   keys_of[head], scores);
      for (int r = 0; r < count; r++) softmax(scores + std::size_t(r) * width, tokens);
      multiply<Factor, IN_TILES, 4>(weights_of(scores, width, count, Factor()), count,
                                    values_of[head], (tokens + LANE - 1) / LANE,
                                    space.mixed.at(head * HEAD), heads * HEAD);
    }
    write_mixed(space.mixed.at(0), heads * HEAD, count, into, first_row + first, span);
  }
}

// scores (rows, padded tokens) = wanted (rows, width) · tokens (tokens, width) of a few rows, for
// which turning the tokens round would take longer than the products do.
inline void score(const float* wanted, int rows, const float* tokens, int width, int count,
                  float* scores) {
  const int step = padded(count);
  in_tiles(rows, [&]<int ROWS>(int first) {
    for (int token = 0; token < count; token++) {
      Vector sums[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) sums[r] = zero();
      for (int i = 0; i < width; i += 16) {
        const Vector values = loadu(tokens + std::size_t(token) * width + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const float* row = wanted + std::size_t(first + r) * width;
          sums[r] = fmadd(loadu(row + i), values, sums[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        scores[std::size_t(first + r) * step + token] = sum_of(sums[r]);
      }
    }
  });
}

// Attend with a few queries (rows, width), already times the keys' weights, to the tokens
// themselves. Rows of `into`, from `first_row` on, get the tokens, mixed by their scores.
inline void attend_to_tokens(const float* wanted, int rows, const float* tokens, int width,
                             int count, AttentionSpace& space, Rows<Fp32>& into, int first_row) {
  float* scores = space.scores.at(0);
  score(wanted, rows, tokens, width, count, scores);
  for (int r = 0; r < rows; r++) softmax(scores + std::size_t(r) * padded(count), count);
  for (int group = 0; group < width / GROUP; group++) {
    dense<Fp32, 4>({scores, padded(count)}, rows, {tokens + group * GROUP, width}, count,
                   into.values(first_row, group), width);
  }
}

}  // namespace corom
