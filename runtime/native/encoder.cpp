// A BERT encoder in int8-per-token: token ids to one un-normalized vector a text. Called from
// ../native_library.py through the functions at the end.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "codes.h"
#include "math.h"
#include "norm.h"
#include "product.h"
#include "team.h"

namespace corom {
namespace {

// What is one head's, or one panel's, is encoded as one group.
static_assert(HEAD == GROUP && PANEL == GROUP);

// Attention and feed-forward, each with its residual and norm.
struct Layer {
  Weights query, key_value, output, inner, outer;
  Norm attention_norm, output_norm;
};

struct Model {
  int width;        // values of a token, H
  int inner_width;  // of the feed-forward layer
  std::int64_t vocabulary, positions_there;
  bool mean_pooled;        // else the vector is that of the first token
  const float* words;      // (vocabulary, H), owned by the caller
  const float* positions;  // (positions, H), the same
  Activation activation;
  Norm norm;
  std::vector<std::unique_ptr<Layer>> layers;

  int heads() const { return width / HEAD; }
};

// The texts of one execution: `width` ids a row, of which the first `lengths[row]` count.
struct Texts {
  const std::int64_t* ids;
  const std::int64_t* lengths;
  int count, width;
};

// What one execution writes on its way, kept from one to the next. There is no padding: the tokens
// of all texts are the rows of one matrix, T in all.
struct Space {
  std::vector<int> starts;                           // of each text among the tokens; their number
  Buffer<float> hidden, sums, queries, keys_values;  // (T, H), the same, the same, (T, 2H)
  CodedRows tokens, gathered, inner;
  std::deque<AttentionSpace> attention;  // one a thread

  void reserve(const Model& model, const Texts& texts, int threads) {
    starts.assign(1, 0);
    int longest = 0;
    for (int text = 0; text < texts.count; text++) {
      const int length = int(texts.lengths[text]);
      starts.push_back(starts.back() + length);
      longest = std::max(longest, length);
    }
    const int rows = starts.back();
    const std::size_t values = std::size_t(rows) * model.width;
    hidden.reserve(values);
    sums.reserve(values);
    queries.reserve(values);
    keys_values.reserve(2 * values);
    tokens.reserve(rows, model.width);
    gathered.reserve(rows, model.width);
    inner.reserve(rows, model.inner_width);
    while (int(attention.size()) < threads) attention.emplace_back();
    for (AttentionSpace& space : attention) space.reserve(longest);
  }
};

// One member's part of every step of an execution. Between two steps the members meet.
class Part {
 public:
  Part(const Model& model, const Texts& texts, Space& space, int member, int members)
      : model_(model), texts_(texts), space_(space), member_(member), members_(members) {}

  void embed() const {
    const int width = model_.width;
    for (int text = 0; text < texts_.count; text++) {
      const int start = space_.starts[text], end = space_.starts[text + 1];
      const Share mine = share(end - start);
      for (int token = mine.begin; token < mine.end; token++) {
        const std::int64_t id = texts_.ids[std::size_t(text) * texts_.width + token];
        const int row = start + token;
        model_.norm(model_.words + std::size_t(id) * width,
                    model_.positions + std::size_t(token) * width, hidden(row), &space_.tokens,
                    row);
      }
    }
  }

  // Queries, keys and values. `first_only`: queries of each text's first token alone.
  void project(const Layer& layer, bool first_only) const {
    const int* starts = first_only ? space_.starts.data() : nullptr;
    multiply(space_.tokens, rows(first_only), starts, layer.query, space_.queries);
    multiply(space_.tokens, rows(false), nullptr, layer.key_value, space_.keys_values);
  }

  void attend(bool first_only) const {
    const int width = model_.width, heads = model_.heads();
    const Share mine = share(texts_.count * heads);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int text = unit / heads, head = unit % heads;
      const int start = space_.starts[text], tokens = space_.starts[text + 1] - start;
      const int first = first_only ? text : start;
      const float* keys = space_.keys_values.at(std::size_t(start) * 2 * width + head * HEAD);
      corom::attend(space_.queries.at(std::size_t(first) * width + head * HEAD), width,
                    first_only ? 1 : tokens, keys, keys + width, 2 * width, tokens,
                    space_.attention[member_], space_.gathered, first, head);
    }
  }

  // out = rows · weights + bias
  void multiply(const CodedRows& from, int count, const int* order, const Weights& weights,
                Buffer<float>& out) const {
    const int width = weights.panels() * PANEL;
    const Share mine = share(weights.panels());
    product(from, count, order, weights, mine.begin, mine.end,
            [&](int row, int panel, const __m512 values[4]) {
              float* to = out.at(std::size_t(row) * width + panel * PANEL);
              for (int i = 0; i < 4; i++) _mm512_store_ps(to + 16 * i, values[i]);
            });
  }

  // inner = activation(tokens · weights + bias), as codes at once
  void widen(const Layer& layer, bool first_only) const {
    const Share mine = share(layer.inner.panels());
    const Activation activation = model_.activation;
    CodedRows& inner = space_.inner;
    product(space_.tokens, rows(first_only), nullptr, layer.inner, mine.begin, mine.end,
            [&inner, activation](int row, int panel, const __m512 values[4]) {
              __m512 active[4];
#pragma GCC unroll 4
              for (int i = 0; i < 4; i++) active[i] = activation(values[i]);
              encode(active, inner, row, panel);
            });
  }

  // sums = attention's norm of what it gathered and the tokens
  void norm_attention(const Layer& layer, bool first_only) const {
    const Share mine = share(rows(first_only));
    for (int row = mine.begin; row < mine.end; row++) {
      layer.attention_norm(sums(row), hidden(first_only ? space_.starts[row] : row), sums(row),
                           &space_.tokens, row);
    }
  }

  // hidden = the layer's output
  void norm_output(const Layer& layer, bool first_only) const {
    const Share mine = share(rows(first_only));
    for (int row = mine.begin; row < mine.end; row++) {
      layer.output_norm(hidden(row), sums(row), hidden(row), first_only ? nullptr : &space_.tokens,
                        row);
    }
  }

  void pool(float* vectors) const {
    const int width = model_.width;
    const Share mine = share(texts_.count);
    for (int text = mine.begin; text < mine.end; text++) {
      float* vector = vectors + std::size_t(text) * width;
      if (!model_.mean_pooled) {
        std::memcpy(vector, hidden(text), width * sizeof(float));
        continue;
      }
      const int start = space_.starts[text], end = space_.starts[text + 1];
      std::fill_n(vector, width, 0.0f);
      for (int token = start; token < end; token++) {
        const float* values = hidden(token);
        for (int i = 0; i < width; i++) vector[i] += values[i];
      }
      for (int i = 0; i < width; i++) vector[i] /= float(end - start);
    }
  }

  int rows(bool first_only) const { return first_only ? texts_.count : space_.starts.back(); }

 private:
  Share share(int count) const { return Share(count, member_, members_); }
  float* hidden(int row) const { return space_.hidden.at(std::size_t(row) * model_.width); }
  float* sums(int row) const { return space_.sums.at(std::size_t(row) * model_.width); }

  const Model& model_;
  const Texts& texts_;
  Space& space_;
  const int member_, members_;
};

// Texts to vectors (count, H), a step a line; `meet` returns when all members have done theirs.
template <typename Meet>
void encode_texts(const Model& model, const Texts& texts, Space& space, int member, int members,
                  float* vectors, const Meet& meet) {
  const Part part(model, texts, space, member, members);
  part.embed(), meet();
  for (const auto& layer : model.layers) {
    // With [CLS] pooling the last layer's output is needed for the first token alone.
    const bool first_only = !model.mean_pooled && layer == model.layers.back();
    part.project(*layer, first_only), meet();
    part.attend(first_only), meet();
    part.multiply(space.gathered, part.rows(first_only), nullptr, layer->output, space.sums);
    meet();
    part.norm_attention(*layer, first_only), meet();
    part.widen(*layer, first_only), meet();
    part.multiply(space.inner, part.rows(first_only), nullptr, layer->outer, space.hidden);
    meet();
    part.norm_output(*layer, first_only), meet();
  }
  part.pool(vectors);
}

// Executes one batch at a time, by the threads of a team.
class Runner {
 public:
  Runner(const Model& model, int threads) : model_(model), team_(threads), spaces_(threads) {}

  // Whether the model has a vector for every id, and positions for every length.
  bool can_run(const Texts& texts) const {
    for (int text = 0; text < texts.count; text++) {
      const std::int64_t length = texts.lengths[text];
      if (length < 1 || length > texts.width || length > model_.positions_there) return false;
      const std::int64_t* ids = texts.ids + std::size_t(text) * texts.width;
      const auto unknown = [&](std::int64_t id) { return id < 0 || id >= model_.vocabulary; };
      if (std::any_of(ids, ids + length, unknown)) return false;
    }
    return true;
  }

  void run(const Texts& texts, float* vectors) {
    if (texts.count >= APART * team_.size())
      run_apart(texts, vectors);
    else
      run_together(texts, vectors);
  }

 private:
  // Texts for each thread from which on none waits for another between two steps.
  static constexpr int APART = 4;

  void run_together(const Texts& texts, float* vectors) {
    spaces_[0].reserve(model_, texts, team_.size());
    team_.run([&](int member) {
      encode_texts(model_, texts, spaces_[0], member, team_.size(), vectors,
                   [this] { team_.meet(); });
    });
  }

  // Each member takes as many tokens, of whole texts.
  void run_apart(const Texts& texts, float* vectors) {
    const int members = team_.size();
    std::int64_t tokens = 0;
    for (int text = 0; text < texts.count; text++) tokens += texts.lengths[text];
    std::vector<Texts> parts;
    std::int64_t before = 0;
    for (int text = 0, first = 0; text < texts.count; text++) {
      before += texts.lengths[text];
      const bool last = text + 1 == texts.count;
      if (!last && before * members < tokens * std::int64_t(parts.size() + 1)) continue;
      parts.push_back({texts.ids + std::size_t(first) * texts.width, texts.lengths + first,
                       text + 1 - first, texts.width});
      first = text + 1;
    }
    for (std::size_t part = 0; part < parts.size(); part++) {
      spaces_[part].reserve(model_, parts[part], 1);
    }
    team_.run([&](int member) {
      if (member >= int(parts.size())) return;
      const Texts& part = parts[member];
      const std::size_t row = part.lengths - texts.lengths;
      encode_texts(model_, part, spaces_[member], 0, 1, vectors + row * model_.width, [] {});
    });
  }

  const Model& model_;
  Team team_;
  std::vector<Space> spaces_;
};

}  // namespace
}  // namespace corom

// The interface in C. What cannot be had for want of memory or threads is null, or NO_MEMORY: no
// exception goes beyond.
extern "C" {

using corom::Model;
using corom::Runner;

enum Result { DONE = 0, NO_MEMORY = 1, NOT_ENCODABLE = 2 };

// The int8 codes (columns, inputs), scales (columns) and bias (columns) of a linear layer.
struct CoromLinear {
  const std::int8_t* codes;
  const float* scales;
  const float* bias;
};

struct CoromNorm {
  const float* weight;
  const float* bias;
};

struct CoromLayer {
  CoromLinear query, key_value, output, inner, outer;
  CoromNorm attention_norm, output_norm;
};

// `words` and `positions` are used where they are; everything else is copied.
struct CoromModel {
  std::int64_t vocabulary, positions, width, inner_width, mean_pooled;
  float epsilon, activation_end;
  const float* activation;  // Activation::DEGREE + 1 coefficients
  const float* words;
  const float* position_table;
  CoromNorm norm;
};

// Raised with every change of what is below: INTERFACE of ../native_library.py.
int corom_interface() { return 2; }

void* corom_model(const CoromModel* from) {
  try {
    const int width = int(from->width);
    corom::Activation activation{from->activation_end, {}};
    std::copy_n(from->activation, corom::Activation::DEGREE + 1, activation.coefficients);
    return new Model{width,
                     int(from->inner_width),
                     from->vocabulary,
                     from->positions,
                     from->mean_pooled != 0,
                     from->words,
                     from->position_table,
                     activation,
                     corom::Norm(width, from->epsilon, from->norm.weight, from->norm.bias),
                     {}};
  } catch (...) {
    return nullptr;
  }
}

int corom_add_layer(void* handle, float epsilon, const CoromLayer* from) {
  Model& model = *static_cast<Model*>(handle);
  const int width = model.width, inner = model.inner_width;
  const auto weights = [](int columns, int inputs, const CoromLinear& linear) {
    return corom::Weights(columns, inputs, linear.codes, linear.scales, linear.bias);
  };
  const auto norm = [&](const CoromNorm& norm) {
    return corom::Norm(width, epsilon, norm.weight, norm.bias);
  };
  try {
    model.layers.emplace_back(new corom::Layer{
        weights(width, width, from->query), weights(2 * width, width, from->key_value),
        weights(width, width, from->output), weights(inner, width, from->inner),
        weights(width, inner, from->outer), norm(from->attention_norm), norm(from->output_norm)});
    return DONE;
  } catch (...) {
    return NO_MEMORY;
  }
}

void corom_free_model(void* handle) { delete static_cast<Model*>(handle); }

// `model` must outlive the runner.
void* corom_runner(const void* model, int threads) {
  try {
    return new Runner(*static_cast<const Model*>(model), threads);
  } catch (...) {
    return nullptr;
  }
}

void corom_free_runner(void* runner) { delete static_cast<Runner*>(runner); }

// ids (count, width) and lengths (count) to vectors (count, H). One call at a time.
int corom_run(void* handle, const std::int64_t* ids, const std::int64_t* lengths, int count,
              int width, float* vectors) {
  Runner& runner = *static_cast<Runner*>(handle);
  const corom::Texts texts{ids, lengths, count, width};
  if (!runner.can_run(texts)) return NOT_ENCODABLE;
  try {
    runner.run(texts, vectors);
    return DONE;
  } catch (...) {
    return NO_MEMORY;
  }
}

}  // extern "C"
