// What attention multiplies: values in fp32, or pairs of them in bf16, which the instruction
// multiplies in one go.
#pragma once

#include <cstddef>

#include "buffer.h"
#include "rows.h"
#include "vectors.h"

namespace corom {

constexpr int HEAD = 64;  // values of a head, as many as a group

inline int padded(int tokens) { return (tokens + 15) / 16 * 16; }

// Tokens whose pairs fill whole tiles.
inline int padded_pairs(int tokens) { return (tokens + 31) / 32 * 32; }

// Rows of lanes of 32 bits, `step` apart; a lane is a value, or two in bf16.
struct Operand {
  const float* lanes;
  int step;

  Operand row(int index) const { return {lanes + std::size_t(index) * step, step}; }
  Operand from(int lane) const { return {lanes + lane, step}; }
};

// Sixteen rows of sixteen lanes, of which `count` are there, as sixteen columns, `step` apart.
template <typename Load>
[[gnu::always_inline]] inline void store_turned(int count, const Load& load, float* out, int step) {
  Vector block[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) block[i] = i < count ? load(i) : zero();
  transpose(block);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) storeu(out + std::size_t(i) * step, block[i]);
}

// Keys (tokens, HEAD / LANE) as (HEAD / LANE, padded tokens), zeros behind the last token.
template <typename Factor>
Operand turned(Operand keys, int tokens, float* out) {
  const int width = padded(tokens);
  for (int t = 0; t < width; t += 16) {
    const Operand from = keys.row(t);
    for (int lane = 0; lane < HEAD / Factor::LANE; lane += 16) {
      const auto load = [&](int i) { return loadu(from.row(i).lanes + lane); };
      store_turned(tokens - t, load, out + std::size_t(lane) * width + t, width);
    }
  }
  return {out, width};
}

}  // namespace corom
