// Texts to vectors, a step at a time, each shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <type_traits>
#include <variant>
#include <vector>

#include "activated.h"
#include "attention.h"
#include "buffer.h"
#include "model.h"
#include "product.h"
#include "rows.h"
#include "share.h"
#include "written.h"

namespace corom {

// The texts of one execution: `width` ids a row, of which the first `lengths[row]` count.
struct Texts {
  const std::int64_t* ids;
  const std::int64_t* lengths;
  int count, width;
};

// What one execution writes on its way, kept from one to the next. There is no padding: the tokens
// of all texts are the rows of one matrix, T in all. B texts, heads n.
template <typename Number>
struct Space {
  std::vector<int> starts;              // of each text among the tokens; their number
  Buffer<float> hidden;                 // (T, H), where the residuals stay
  Buffer<float> queries, keys, values;  // the same, as attention multiplies them; or (B, H) in fp32
  Rows<Number> tokens, gathered;        // the same
  Rows<Number> inner;
  // Of a layer for first tokens alone
  Buffer<float> wanted;                  // (B · n, H)
  Rows<Fp32> mixed;                      // the same
  std::vector<int> by_head;              // (n, B) rows of `mixed`
  std::deque<AttentionSpace> attention;  // one a thread

  // Memory for any of `parts`, one at a time.
  void reserve(const Model<Number>& model, const std::vector<Texts>& parts, int threads) {
    std::size_t rows = 0, texts = 0;
    int longest = 0;
    for (const Texts& part : parts) {
      std::size_t tokens = 0;
      for (int text = 0; text < part.count; text++) {
        tokens += std::size_t(part.lengths[text]);
        longest = std::max(longest, int(part.lengths[text]));
      }
      rows = std::max(rows, tokens);
      texts = std::max(texts, std::size_t(part.count));
    }
    starts.reserve(texts + 1);
    const std::size_t values_there = rows * model.width;
    hidden.reserve(values_there);
    const std::size_t lanes = model.attends_in_bf16 ? values_there / Bf16::LANE : values_there;
    const std::size_t first = texts * model.width;  // queries and values of first tokens are fp32
    queries.reserve(std::max(lanes, first));
    keys.reserve(lanes);
    values.reserve(std::max(lanes, first));
    tokens.reserve(rows, model.width, TOKEN_SPAN);
    gathered.reserve(rows, model.width, GATHERED_SPAN<Number>);
    inner.reserve(rows, model.inner_width, INNER_SPAN<Number>);
    if (!model.mean_pooled) {
      const std::size_t head_rows = texts * model.heads();
      wanted.reserve(head_rows * model.width);
      mixed.reserve(head_rows, model.width, GROUP);
      by_head.reserve(head_rows);
    }
    while (int(attention.size()) < threads) attention.emplace_back();
    for (AttentionSpace& space : attention) {
      constexpr int HEADS = GATHERED_SPAN<Number> / HEAD;
      if (model.attends_in_bf16)
        space.reserve<Bf16>(longest, HEADS);
      else
        space.reserve<Fp32>(longest, HEADS);
    }
  }

  // Begin with texts that memory was reserved for: nothing here can fail.
  void begin(const Model<Number>& model, const Texts& texts) {
    starts.assign(1, 0);
    for (int text = 0; text < texts.count; text++) {
      starts.push_back(starts.back() + int(texts.lengths[text]));
    }
    if (model.mean_pooled) return;
    const int heads = model.heads();
    by_head.resize(std::size_t(texts.count) * heads);
    for (int row = 0; row < int(by_head.size()); row++) {
      by_head[row % heads * texts.count + row / heads] = row;
    }
  }
};

// One member's part of every step of an execution. Between two steps the members meet.
template <typename Number>
class Part {
 public:
  Part(const Model<Number>& model, const Texts& texts, Space<Number>& space, int member,
       int members)
      : model_(model), texts_(texts), space_(space), member_(member), members_(members) {}

  // hidden = the tokens' embeddings; queries, keys and values, if they are made of words and
  // positions
  void embed() const {
    const int width = model_.width;
    const EmbeddedProjections* embedded = model_.embedded();
    for (int text = 0; text < texts_.count; text++) {
      const int start = space_.starts[text], end = space_.starts[text + 1];
      const Share mine = share(end - start);
      for (int token = mine.begin; token < mine.end; token++) {
        const std::int64_t* ids = texts_.ids + std::size_t(text) * texts_.width;
        if (token + 1 < mine.end) {
          prefetch(model_.words + std::size_t(ids[token + 1]) * width, width);
          if (embedded != nullptr) embedded->prefetch(ids[token + 1]);
        }
        const std::int64_t id = ids[token];
        const int row = start + token;
        for (int i = 0; i < width; i += 16) {
          const __m512 word = _mm512_loadu_ps(model_.words + std::size_t(id) * width + i);
          const __m512 position =
              _mm512_loadu_ps(model_.positions + std::size_t(token) * width + i);
          _mm512_store_ps(hidden(row) + i, _mm512_add_ps(word, position));
        }
        const float factor =
            model_.norm(hidden(row), embedded == nullptr ? &space_.tokens : nullptr, row);
        if (embedded == nullptr) continue;
        attending([&](auto as) {
          const std::size_t at = std::size_t(row) * step(as);
          (*embedded)(id, token, factor, space_.queries.at(at), space_.keys.at(at),
                      space_.values.at(at), as);
        });
      }
    }
  }

  void project(const Projections<Number>& projections) const {
    const int panels = projections.query.panels();
    const Cut cut(rows(), 3 * panels, 1, members_);
    const int parts = panels * cut.blocks;
    const Share mine = share(3 * parts);
    const auto multiplied = [&](int index, const Weights<Number>& weights, Buffer<float>& out) {
      const int begin = std::clamp(mine.begin - index * parts, 0, parts);
      const int end = std::clamp(mine.end - index * parts, 0, parts);
      attending([&](auto as) {
        product(space_.tokens, nullptr, weights, cut, begin, end, written(out, as));
      });
    };
    multiplied(0, projections.query, space_.queries);
    multiplied(1, projections.key, space_.keys);
    multiplied(2, projections.value, space_.values);
  }

  void attend() const {
    const int spans = space_.gathered.spans();
    const Share mine = share(texts_.count * spans);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int text = unit / spans, span = unit % spans;
      const int start = space_.starts[text], tokens = space_.starts[text + 1] - start;
      const int head = space_.gathered.first_group(span);
      attending([&]<typename Factor>(Factor as) {
        const auto begun = [&](const Buffer<float>& rows) {
          return Operand{rows.at(0), step(as)}.row(start).from(head * HEAD / Factor::LANE);
        };
        corom::attend<Factor>(begun(space_.queries), begun(space_.keys), begun(space_.values),
                              tokens, space_.attention[member_], space_.gathered, start, span);
      });
    }
  }

  // Queries of each text's first token.
  void project_first(const FirstProjections<Number>& projections) const {
    multiply(one_by_one(projections.query, true), space_.tokens, space_.starts.data(),
             projections.query, written(space_.queries));
  }

  // What each head of a first token looks for in the tokens: q · (W x) = (q · W) · x. The keys'
  // bias would add the same to all scores of a row, which softmax does not see.
  void turn_first(const FirstProjections<Number>& projections) const {
    const int width = model_.width, heads = model_.heads(), panels = width / PANEL;
    const Share mine = share(heads * panels);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int head = unit / panels, column = unit % panels * PANEL;
      dense<Fp32, 4>({space_.queries.at(head * HEAD), width}, texts_.count,
                     {projections.key + std::size_t(unit) * HEAD * PANEL, PANEL}, HEAD,
                     space_.wanted.at(std::size_t(head) * width + column), heads * width);
    }
  }

  void attend_first() const {
    const int width = model_.width, heads = model_.heads();
    const int parts = (heads + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
    const Share mine = share(texts_.count * parts);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int text = unit / parts, head = unit % parts * HEADS_AT_ONCE;
      const int start = space_.starts[text], tokens = space_.starts[text + 1] - start;
      const int row = text * heads + head;
      attend_to_tokens(space_.wanted.at(std::size_t(row) * width),
                       std::min(HEADS_AT_ONCE, heads - head), hidden(start), width, tokens,
                       space_.attention[member_], space_.mixed, row);
    }
  }

  // The values of mixed tokens are the values mixed.
  void gather_first(const FirstProjections<Number>& projections) const {
    const Share mine = share(model_.heads());
    for (int head = mine.begin; head < mine.end; head++) {
      product(space_.mixed, &space_.by_head[std::size_t(head) * texts_.count], projections.value,
              Cut(texts_.count, 1, 1, 1), head, head + 1, written(space_.values));
    }
  }

  void write_first() const {
    const int width = model_.width, spans = space_.gathered.spans();
    const Share mine = share(spans);
    for (int span = mine.begin; span < mine.end; span++) {
      write_mixed(space_.values.at(space_.gathered.first_group(span) * GROUP), width, texts_.count,
                  space_.gathered, 0, span);
    }
  }

  // hidden += what attention gathered · weights + bias
  void output(const Layer<Number>& layer, bool first_only) const {
    multiply(one_by_one(layer.output, first_only), space_.gathered, nullptr, layer.output,
             added(first_only));
  }

  // hidden and tokens = its norm
  void norm_attention(const Layer<Number>& layer, bool first_only) const {
    const Share mine = share(rows(first_only));
    for (int row = mine.begin; row < mine.end; row++) {
      layer.attention_norm(hidden(place(row, first_only)), &space_.tokens, row);
    }
  }

  // inner = activation(tokens · weights + bias)
  void widen(const Layer<Number>& layer, bool first_only) const {
    Activated<Number> store(model_.activation, space_.inner);
    const Cut cut(rows(first_only), layer.inner.panels(), store.PANELS, members_);
    multiply(cut, space_.tokens, nullptr, layer.inner, store);
  }

  // hidden += inner · weights + bias
  void narrow(const Layer<Number>& layer, bool first_only) const {
    multiply(one_by_one(layer.outer, first_only), space_.inner, nullptr, layer.outer,
             added(first_only));
  }

  // hidden and tokens = the layer's output
  void norm_output(const Layer<Number>& layer, bool first_only) const {
    const Share mine = share(rows(first_only));
    for (int row = mine.begin; row < mine.end; row++) {
      layer.output_norm(hidden(place(row, first_only)), first_only ? nullptr : &space_.tokens, row);
    }
  }

  void pool(float* vectors) const {
    const int width = model_.width;
    const Share mine = share(texts_.count);
    for (int text = mine.begin; text < mine.end; text++) {
      float* vector = vectors + std::size_t(text) * width;
      if (!model_.mean_pooled) {
        std::memcpy(vector, hidden(space_.starts[text]), width * sizeof(float));
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

 private:
  // Of one token: so many stay in the level-1 cache, and one text has work for several threads.
  static constexpr int HEADS_AT_ONCE = 4;

  int rows(bool first_only = false) const {
    return first_only ? texts_.count : space_.starts.back();
  }
  Share share(int count) const { return Share(count, member_, members_); }
  float* hidden(int row) const { return space_.hidden.at(std::size_t(row) * model_.width); }
  // Where a row of `rows(first_only)` is among the tokens.
  int place(int row, bool first_only) const { return first_only ? space_.starts[row] : row; }

  Added added(bool first_only) const {
    return {space_.hidden.at(0), model_.width, first_only ? space_.starts.data() : nullptr};
  }

  // Call `work` with what queries, keys, values and their weights are multiplied as.
  template <typename Work>
  void attending(const Work& work) const {
    if constexpr (!std::is_same_v<Number, Fp32>) {
      if (model_.attends_in_bf16) return work(Bf16());
    }
    work(Fp32());
  }
  // Lanes from one token's queries, keys or values to the next one's.
  template <typename Factor>
  int step(Factor) const {
    return model_.width / Factor::LANE;
  }

  // A panel at a time, times all rows, or one of each text.
  Cut one_by_one(const Weights<Number>& weights, bool first_only) const {
    return Cut(rows(first_only), weights.panels(), 1, members_);
  }

  // This member's part of the product of rows, or those that `order` names, and weights.
  template <typename Store>
  void multiply(const Cut& cut, const Rows<Number>& from, const int* order,
                const Weights<Number>& weights, Store&& store) const {
    const Share mine = share(cut.parts());
    product(from, order, weights, cut, mine.begin, mine.end, store);
  }

  template <typename Factor = Fp32>
  Written<Factor> written(Buffer<float>& out, Factor as = {}) const {
    return {out.at(0), step(as)};
  }

  const Model<Number>& model_;
  const Texts& texts_;
  Space<Number>& space_;
  const int member_, members_;
};

// Texts to vectors (count, H), a step a line; `meet` returns when all members have done theirs.
template <typename Number, typename Meet>
void encode_texts(const Model<Number>& model, const Texts& texts, Space<Number>& space, int member,
                  int members, float* vectors, const Meet& meet) {
  const Part<Number> part(model, texts, space, member, members);
  part.embed(), meet();
  for (const auto& layer : model.layers) {
    // With [CLS] pooling the last layer's output is needed for the first token alone.
    const auto* first = std::get_if<FirstProjections<Number>>(&layer->projections);
    const bool first_only = first != nullptr;
    if (first_only) {
      part.project_first(*first), meet();
      part.turn_first(*first), meet();
      part.attend_first(), meet();
      part.gather_first(*first), meet();
      part.write_first(), meet();
    } else {
      const auto* projections = std::get_if<Projections<Number>>(&layer->projections);
      if (projections != nullptr) part.project(*projections), meet();
      part.attend(), meet();
    }
    part.output(*layer, first_only), meet();
    part.norm_attention(*layer, first_only), meet();
    part.widen(*layer, first_only), meet();
    part.narrow(*layer, first_only), meet();
    part.norm_output(*layer, first_only), meet();
  }
  part.pool(vectors);
}

}  // namespace corom
