// The first layer's queries, keys and values, of words and positions instead of tokens.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "norm.h"
#include "product.h"
#include "rows.h"
#include "share.h"
#include "tiles.h"
#include "weights.h"
#include "written.h"

namespace corom {

// What the first layer makes of an embedding, x = LayerNorm(word + position), is linear in both but
// for one factor of the token: W x + b = (V word + V position) / deviation + c, of word and
// position without their means; V = W · diag(norm's weight), c = W · norm's bias + b. So each word
// is multiplied once, when it is first seen, and each position, and a token costs a sum. In fp32
// whatever the precision, as there is so little to multiply.
class EmbeddedProjections {
 public:
  // Bytes that the rows of all words and positions may have; those not seen yet take no memory.
  static constexpr std::size_t MOST_BYTES = std::size_t(256) << 20;

  static bool fit(int width, std::int64_t words, std::int64_t positions) {
    return std::size_t(words + positions) * 3 * width * sizeof(float) <= MOST_BYTES;
  }

  // Its weights are kept in `arena`.
  EmbeddedProjections(Arena& arena, int width, const float* words, std::int64_t words_there,
                      const float* positions, std::int64_t positions_there, const Norm& norm,
                      const std::array<Linear, 3>& linears)
      : width_(width),
        words_there_(words_there),
        words_(words),
        positions_(positions),
        rows_(seen_.take<float>(std::size_t(words_there + positions_there) * 3 * width)),
        weights_(of_embeddings(arena, width, norm, linears)),
        constants_(arena.take<float>(3 * std::size_t(width))),
        index_of_(new std::atomic<std::int32_t>[words_there + positions_there]) {
    for (std::int64_t place = 0; place < words_there + positions_there; place++) {
      index_of_[place].store(UNKNOWN, std::memory_order_relaxed);
    }
    for (int column = 0; column < 3 * width; column++) {
      const Linear& linear = linears[column / width];
      const float* row = linear.weight + std::size_t(column % width) * width;
      double sum = linear.bias[column % width];
      for (int i = 0; i < width; i++) sum += double(row[i]) * norm.bias()[i];
      constants_[column] = float(sum);
    }
  }

  // Append those of a text's words and positions that were not seen before, each time they come.
  void find_unknown(const std::int64_t* ids, int count, std::vector<std::int64_t>& unknown) const {
    const auto look = [&](std::int64_t place) {
      if (index_of_[place].load(std::memory_order_acquire) == UNKNOWN) unknown.push_back(place);
    };
    for (int token = 0; token < count; token++) {
      look(ids[token]);
      look(words_there_ + token);
    }
  }

  // Multiply what `find_unknown` found; it is used up.
  void learn(std::vector<std::int64_t>& unknown) const {
    std::sort(unknown.begin(), unknown.end());
    unknown.erase(std::unique(unknown.begin(), unknown.end()), unknown.end());
    Rows<Fp32> rows;
    rows.reserve(std::min<std::size_t>(AT_ONCE, unknown.size()), width_, width_);
    while (!unknown.empty()) {
      std::array<std::int64_t, AT_ONCE> places;
      int count = 0;
      const std::lock_guard<std::mutex> alone(multiplying_);
      for (; count < AT_ONCE && !unknown.empty(); unknown.pop_back()) {
        // Another runner may have multiplied it meanwhile, and reads it already.
        if (index_of_[unknown.back()].load() == UNKNOWN) places[count++] = unknown.back();
      }
      if (count == 0) return;
      for (int i = 0; i < count; i++) write_centred(places[i], rows.values(i));
      product(rows, nullptr, weights_, Cut(count, weights_.panels(), 1, 1), 0, weights_.panels(),
              Written<Fp32>{row(rows_there_), 3 * width_});
      for (int i = 0; i < count; i++) {
        index_of_[places[i]].store(rows_there_++, std::memory_order_release);
      }
    }
  }

  // A token's queries, keys and values, (H,) each, as they will be multiplied. `factor`:
  // 1 / deviation, of its norm.
  template <typename Factor>
  void operator()(std::int64_t word, int position, float factor, float* query, float* key,
                  float* value, Factor) const {
    const float* of_word = row_of(word);
    const float* of_position = row_of(words_there_ + position);
    const Vector factors = set1(factor);
    int at = 0;
    for (float* out : {query, key, value}) {
      for (int i = 0; i < width_; i += 32, at += 32) {
        const auto made = [&](int from) {
          const Vector sum = add(load(of_word + from), load(of_position + from));
          return fmadd(sum, factors, load(constants_ + from));
        };
        write(made(at), made(at + 16), out + i / Factor::LANE, Factor());
      }
    }
  }

  void prefetch(std::int64_t word) const { corom::prefetch(row_of(word), 3 * width_); }

 private:
  static constexpr int AT_ONCE = 16 * TILE;
  static constexpr std::int32_t UNKNOWN = -1;

  static Weights<Fp32> of_embeddings(Arena& arena, int width, const Norm& norm,
                                     const std::array<Linear, 3>& linears) {
    const std::size_t size = std::size_t(width) * width;
    Buffer<float> weights(3 * size), no_bias(3 * std::size_t(width));
    for (int index = 0; index < 3; index++) {
      for (std::size_t at = 0; at < size; at++) {
        *weights.at(index * size + at) = linears[index].weight[at] * norm.weight()[at % width];
      }
    }
    std::fill_n(no_bias.at(0), 3 * width, 0.0f);
    return Weights<Fp32>(arena, 3 * width, width, width, weights.at(0), no_bias.at(0));
  }

  float* row(int index) const { return rows_ + std::size_t(index) * 3 * width_; }
  const float* row_of(std::int64_t place) const {
    return row(index_of_[place].load(std::memory_order_relaxed));
  }

  void write_centred(std::int64_t place, float* out) const {
    const float* from = place < words_there_
                            ? words_ + std::size_t(place) * width_
                            : positions_ + std::size_t(place - words_there_) * width_;
    double sum = 0;
    for (int i = 0; i < width_; i++) sum += from[i];
    const float mean = float(sum / width_);
    for (int i = 0; i < width_; i++) out[i] = from[i] - mean;
  }

  const int width_;
  const std::int64_t words_there_;
  const float *words_, *positions_;
  Arena seen_;         // its own, to be given back if the rest finds no room
  float* const rows_;  // (words and positions, 3, H), as they were learned
  const Weights<Fp32> weights_;
  float* const constants_;                                 // (3, H), the arena's
  std::unique_ptr<std::atomic<std::int32_t>[]> index_of_;  // words and positions
  mutable int rows_there_ = 0;
  mutable std::mutex multiplying_;
};

}  // namespace corom
