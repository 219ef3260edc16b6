// A BERT encoder's weights.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>
#include <variant>
#include <vector>

#include "amx_tiles.h"
#include "attention.h"
#include "buffer.h"
#include "embedded.h"
#include "math.h"
#include "norm.h"
#include "weights.h"

namespace corom {

// What is one head's, or some panels', is written as one group.
static_assert(HEAD == GROUP && GROUP % PANEL == 0);

// Values of a row that are known together when they are written; in Int8 they share a scale. Fewer
// would be a little nearer to fp32, but each span costs a product about what 16 more inputs do.
constexpr int TOKEN_SPAN = WIDEST;  // a token, whole
template <typename Number>
constexpr int GATHERED_SPAN = is_coded<Number> ? MOST_HEADS * HEAD : HEAD;  // by attention
template <typename Number>
constexpr int INNER_SPAN = is_coded<Number> ? 4 * GROUP : GROUP;  // within feed-forward

// Of attention to all tokens: queries, keys and values are made of each.
template <typename Number>
struct Projections {
  Weights<Number> query, key, value;
};

// Of attention by each text's first token alone: its query is multiplied by the keys' weights, and
// the tokens by its scores, before anything is made of them. In fp32: this is hardly any work.
template <typename Number>
struct FirstProjections {
  Weights<Number> query;
  const float* key;  // (heads, panels, HEAD, PANEL), the arena's
  Weights<Fp32> value;
};

template <typename Number>
using AnyProjections = std::variant<Projections<Number>, FirstProjections<Number>,
                                    std::unique_ptr<EmbeddedProjections>>;

// Attention and feed-forward, each with its residual and norm.
template <typename Number>
struct Layer {
  Weights<Number> output, inner, outer;
  Norm attention_norm, output_norm;
  AnyProjections<Number> projections;
};

template <typename Number>
struct Model {
  // Degree 3 is off by 1e-5, far less than a step between two codes, or one of bf16.
  static constexpr int DEGREE = std::is_same_v<Number, Fp32> ? 5 : 3;

  int width;        // values of a token, H
  int inner_width;  // of the feed-forward layer
  std::int64_t vocabulary, positions_there;
  bool mean_pooled;        // else the vector is that of the first token
  bool attends_in_bf16;    // else in fp32
  bool uses_amx;           // for products with weights, and for attention in bf16; never in fp32
  const float* words;      // (vocabulary, H), owned by the caller
  const float* positions;  // (positions, H), the same
  Activation<DEGREE> activation;
  Norm norm;
  Arena arena;  // has the layers' weights
  std::vector<std::unique_ptr<Layer<Number>>> layers;

  // Of what tiles multiply: they read so many behind the last.
  int spare_rows() const { return uses_amx ? AmxTiles::ROWS - 1 : 0; }
  int heads() const { return width / HEAD; }
  // What the first layer makes of embeddings; null if it takes tokens.
  const EmbeddedProjections* embedded() const {
    const auto* found = std::get_if<std::unique_ptr<EmbeddedProjections>>(&layers[0]->projections);
    return found == nullptr ? nullptr : found->get();
  }
};

}  // namespace corom
