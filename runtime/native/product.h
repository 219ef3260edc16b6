// Coded rows times 8-bit weights, in panels of 64 columns.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "codes.h"
#include "tiles.h"

namespace corom {

constexpr int PANEL = 64;  // columns; as wide as a group, so that a panel's result can be encoded

// The weights (columns, inputs) of a linear layer. In memory: panels; of each, four inputs at a
// time, and of those the 64 columns, as one instruction takes them. `corrections` are what the
// inputs' OFFSET adds to a sum, with the other sign.
class Weights {
 public:
  Weights(int columns, int inputs, const std::int8_t* codes, const float* scales, const float* bias)
      : columns_(columns),
        inputs_(inputs),
        packed_(std::size_t(columns) * inputs),
        corrections_(std::size_t(columns) * inputs / GROUP),
        scales_(columns),
        bias_(columns) {
    std::memset(corrections_.at(0), 0,
                std::size_t(columns) * inputs / GROUP * sizeof(std::int32_t));
    for (int column = 0; column < columns; column++) {
      const std::size_t first = std::size_t(column / PANEL) * PANEL * inputs;
      for (int input = 0; input < inputs; input++) {
        const std::int8_t code = codes[std::size_t(column) * inputs + input];
        *packed_.at(first + input / 4 * 4 * PANEL + column % PANEL * 4 + input % 4) = code;
        *corrections_.at(first / GROUP + input / GROUP * PANEL + column % PANEL) -= OFFSET * code;
      }
    }
    std::memcpy(scales_.at(0), scales, columns * sizeof(float));
    std::memcpy(bias_.at(0), bias, columns * sizeof(float));
  }

  int panels() const { return columns_ / PANEL; }
  int inputs() const { return inputs_; }
  // (inputs / 4, PANEL, 4)
  const std::int8_t* panel(int index) const {
    return packed_.at(std::size_t(index) * PANEL * inputs_);
  }
  // (inputs / GROUP, PANEL)
  const std::int32_t* corrections(int panel) const {
    return corrections_.at(std::size_t(panel) * PANEL * inputs_ / GROUP);
  }
  const float* scales(int panel) const { return scales_.at(std::size_t(panel) * PANEL); }
  const float* bias(int panel) const { return bias_.at(std::size_t(panel) * PANEL); }

 private:
  int columns_, inputs_;
  Buffer<std::int8_t> packed_;
  Buffer<std::int32_t> corrections_;
  Buffer<float> scales_, bias_;
};

// sums += inputs · weights, four products of 8 bits a value. As assembly because GCC 12 copies
// sums from register to register around the intrinsic.
inline void add_products(__m512i& sums, __m512i inputs, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
}

// Sums over one group of inputs for ROWS rows and one panel, added to `total` by the rows' scales.
template <int ROWS>
[[gnu::always_inline]] inline void add_group(const std::uint8_t* const codes[],
                                             const float* const scales[], int group,
                                             const std::int8_t* weights,
                                             const std::int32_t* corrections, __m512 total[][4]) {
  __m512i sum0[ROWS], sum1[ROWS], sum2[ROWS], sum3[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    sum0[r] = _mm512_load_si512(corrections);
    sum1[r] = _mm512_load_si512(corrections + 16);
    sum2[r] = _mm512_load_si512(corrections + 32);
    sum3[r] = _mm512_load_si512(corrections + 48);
  }
#pragma GCC unroll 4
  for (int input = 0; input < GROUP; input += 4, weights += 4 * PANEL) {
    const __m512i weight0 = _mm512_load_si512(weights);
    const __m512i weight1 = _mm512_load_si512(weights + 64);
    const __m512i weight2 = _mm512_load_si512(weights + 128);
    const __m512i weight3 = _mm512_load_si512(weights + 192);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      std::int32_t four;
      std::memcpy(&four, codes[r] + group * GROUP + input, sizeof four);
      const __m512i inputs = _mm512_set1_epi32(four);
      add_products(sum0[r], inputs, weight0);
      add_products(sum1[r], inputs, weight1);
      add_products(sum2[r], inputs, weight2);
      add_products(sum3[r], inputs, weight3);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    const __m512 scale = _mm512_set1_ps(scales[r][group]);
    total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum0[r]), scale, total[r][0]);
    total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum1[r]), scale, total[r][1]);
    total[r][2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum2[r]), scale, total[r][2]);
    total[r][3] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum3[r]), scale, total[r][3]);
  }
}

// `store(row, panel, values[4])` takes 64 results of each of ROWS rows, from `first` on.
template <int ROWS, typename Store>
[[gnu::noinline]] void product_tile(const CodedRows& rows, int first, const int* order,
                                    const Weights& weights, int panel, const Store& store) {
  const std::uint8_t* codes[ROWS];
  const float* scales[ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    const std::size_t group = std::size_t(order ? order[first + r] : first + r) * rows.groups();
    codes[r] = rows.codes.at(group * GROUP);
    scales[r] = rows.scales.at(group);
  }
  __m512 total[ROWS][4];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++) {
    total[r][0] = total[r][1] = total[r][2] = total[r][3] = _mm512_setzero_ps();
  }
  for (int group = 0; group < rows.groups(); group++) {
    add_group<ROWS>(codes, scales, group, weights.panel(panel) + group * GROUP * PANEL,
                    weights.corrections(panel) + group * PANEL, total);
  }
  for (int r = 0; r < ROWS; r++) {
    __m512 values[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      values[i] = _mm512_fmadd_ps(total[r][i], _mm512_load_ps(weights.scales(panel) + 16 * i),
                                  _mm512_load_ps(weights.bias(panel) + 16 * i));
    }
    store(first + r, panel, values);
  }
}

// Rows × panels `begin` to `end` of the weights. `order`: which rows of `rows`; null is all.
template <typename Store>
void product(const CodedRows& rows, int count, const int* order, const Weights& weights, int begin,
             int end, const Store& store) {
  for (int panel = begin; panel < end; panel++) {
    in_tiles(count, [&]<int ROWS>(int first) {
      product_tile<ROWS>(rows, first, order, weights, panel, store);
    });
  }
}

}  // namespace corom
