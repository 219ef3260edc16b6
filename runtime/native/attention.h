// Attention within one text, in fp32. No mask: a text has no padding here.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "buffer.h"
#include "math.h"
#include "rows.h"
#include "tiles.h"

namespace corom {

constexpr int HEAD = 64;  // values of a head, as many as a group

inline int padded(int tokens) { return (tokens + 15) / 16 * 16; }

// What a thread needs to attend to texts of up to `tokens` tokens.
struct AttentionSpace {
  static constexpr int ROWS = 48;  // queries at once, so that memory grows with the text alone

  Buffer<float> keys;    // (heads, HEAD, padded tokens)
  Buffer<float> scores;  // (ROWS, padded tokens)
  Buffer<float> mixed;   // (ROWS, heads, HEAD)

  void reserve(int tokens, int heads) {
    keys.reserve(std::size_t(heads) * HEAD * padded(tokens));
    scores.reserve(std::size_t(ROWS) * padded(tokens));
    mixed.reserve(std::size_t(ROWS) * heads * HEAD);
  }
};

template <int ROWS, int VECTORS>
[[gnu::always_inline]] inline void dense_tile(const float* left, int left_step, const float* right,
                                              int right_step, int inner, float* out, int out_step) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_setzero_ps();
  }
  for (int k = 0; k < inner; k++) {
    __m512 values[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      values[v] = _mm512_loadu_ps(right + std::size_t(k) * right_step + 16 * v);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const __m512 factor = _mm512_set1_ps(left[std::size_t(r) * left_step + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_fmadd_ps(factor, values[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      _mm512_storeu_ps(out + std::size_t(r) * out_step + 16 * v, sums[r][v]);
    }
  }
}

// out (rows, 16 · VECTORS) = left (rows, inner) · right (inner, 16 · VECTORS)
template <int VECTORS>
void dense(const float* left, int left_step, int rows, const float* right, int right_step,
           int inner, float* out, int out_step) {
  in_tiles(rows, [&]<int ROWS>(int first) {
    dense_tile<ROWS, VECTORS>(left + std::size_t(first) * left_step, left_step, right, right_step,
                              inner, out + std::size_t(first) * out_step, out_step);
  });
}

inline void softmax(float* scores, int tokens) {
  const int width = padded(tokens);
  const __mmask16 last = __mmask16(0xffff >> (width - tokens));
  const auto kept = [&](int token) { return token + 16 < width ? __mmask16(0xffff) : last; };
  __m512 largest = _mm512_set1_ps(-3e38f);
  for (int t = 0; t < width; t += 16) {
    largest = _mm512_mask_max_ps(largest, kept(t), largest, _mm512_loadu_ps(scores + t));
  }
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  __m512 sum = _mm512_setzero_ps();
  for (int t = 0; t < width; t += 16) {
    const __m512 raw = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + t), top));
    const __m512 weight = _mm512_maskz_mov_ps(kept(t), raw);
    sum = _mm512_add_ps(sum, weight);
    _mm512_storeu_ps(scores + t, weight);
  }
  const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
  for (int t = 0; t < width; t += 16) {
    _mm512_storeu_ps(scores + t, _mm512_mul_ps(_mm512_loadu_ps(scores + t), share));
  }
}

// `keys` (tokens, HEAD) as (HEAD, padded tokens), zeros behind the last token.
inline void transpose_keys(const float* keys, int step, int tokens, float* out) {
  const int width = padded(tokens);
  for (int t = 0; t < width; t += 16) {
    for (int d = 0; d < HEAD; d += 16) {
      __m512 block[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        block[i] = t + i < tokens ? _mm512_loadu_ps(keys + std::size_t(t + i) * step + d)
                                  : _mm512_setzero_ps();
      }
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_storeu_ps(out + std::size_t(d + i) * width + t, block[i]);
    }
  }
}

// scores (rows, padded tokens) of queries (rows, HEAD) for keys (HEAD, padded tokens)
inline void score_keys(const float* queries, int step, int rows, const float* keys, int tokens,
                       float* scores) {
  const int width = padded(tokens);
  int t = 0;
  for (; t + 64 <= width; t += 64) {
    dense<4>(queries, step, rows, keys + t, width, HEAD, scores + t, width);
  }
  for (; t + 32 <= width; t += 32) {
    dense<2>(queries, step, rows, keys + t, width, HEAD, scores + t, width);
  }
  for (; t < width; t += 16) {
    dense<1>(queries, step, rows, keys + t, width, HEAD, scores + t, width);
  }
}

// Rows `first_row` … of `into` get `count` rows of `mixed`, as their span `span`.
template <typename Number>
void write_mixed(const float* mixed, int step, int count, Rows<Number>& into, int first_row,
                 int span) {
  for (int r = 0; r < count; r++) {
    const float* row = mixed + std::size_t(r) * step;
    encode(reinterpret_cast<const __m512*>(row), into, first_row + r, span);
  }
}

// Attend with the `tokens` of a text to themselves, in the heads that make up span `span` of
// `into`, and write what is gathered as its rows from `first_row` on. Queries, keys and values,
// (tokens, `step`), begin with the first of these heads. The queries carry the scores' scale.
template <typename Number>
void attend(const float* queries, const float* keys, const float* values, int step, int tokens,
            AttentionSpace& space, Rows<Number>& into, int first_row, int span) {
  const int heads = into.first_group(span + 1) - into.first_group(span);
  const int width = padded(tokens), turned = HEAD * width;
  for (int head = 0; head < heads; head++) {
    transpose_keys(keys + head * HEAD, step, tokens, space.keys.at(std::size_t(head) * turned));
  }
  float* scores = space.scores.at(0);
  for (int first = 0; first < tokens; first += AttentionSpace::ROWS) {
    const int count = std::min(tokens - first, AttentionSpace::ROWS);
    for (int head = 0; head < heads; head++) {
      score_keys(queries + std::size_t(first) * step + head * HEAD, step, count,
                 space.keys.at(std::size_t(head) * turned), tokens, scores);
      for (int r = 0; r < count; r++) softmax(scores + std::size_t(r) * width, tokens);
      dense<4>(scores, width, count, values + head * HEAD, step, tokens,
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
      __m512 sums[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) sums[r] = _mm512_setzero_ps();
      for (int i = 0; i < width; i += 16) {
        const __m512 values = _mm512_loadu_ps(tokens + std::size_t(token) * width + i);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const float* row = wanted + std::size_t(first + r) * width;
          sums[r] = _mm512_fmadd_ps(_mm512_loadu_ps(row + i), values, sums[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        scores[std::size_t(first + r) * step + token] = _mm512_reduce_add_ps(sums[r]);
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
    dense<4>(scores, padded(count), rows, tokens + group * GROUP, width, count,
             into.values(first_row, group), width);
  }
}

}  // namespace corom
