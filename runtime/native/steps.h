// Texts to vectors, a step at a time, each shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <type_traits>
#include <variant>
#include <vector>

#include "attention.h"
#include "buffer.h"
#include "first_tokens.h"
#include "flow.h"
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
  Flow<Number> flow;
  std::vector<int> starts;              // of each text among the tokens; their number
  Buffer<float> queries, keys, values;  // (T, H), as attention multiplies them
  // Of a layer for first tokens alone
  Buffer<float> first_queries;           // (B, H)
  Buffer<float> wanted;                  // (B · n, H)
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
    flow.reserve(model, rows);
    starts.reserve(texts + 1);
    const std::size_t lanes =
        (rows + model.spare_rows()) * model.width / (model.attends_in_bf16 ? Bf16::LANE : 1);
    for (Buffer<float>* buffer : {&queries, &keys, &values}) buffer->reserve(lanes);
    if (!model.mean_pooled) {
      first_queries.reserve(texts * model.width);
      wanted.reserve(texts * model.heads() * model.width);
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
  void begin(const Texts& texts) {
    starts.assign(1, 0);
    for (int text = 0; text < texts.count; text++) {
      starts.push_back(starts.back() + int(texts.lengths[text]));
    }
    flow.count = starts.back();
  }
};

template <typename Number>
class TokensPart : public Part<Number> {
 public:
  TokensPart(const Model<Number>& model, const Texts& texts, Space<Number>& space, int member,
             int members)
      : Part<Number>(model, space.flow, member, members), texts_(texts), space_(space) {}

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
          const Vector word = loadu(model_.words + std::size_t(id) * width + i);
          const Vector position = loadu(model_.positions + std::size_t(token) * width + i);
          store(hidden(row) + i, add(word, position));
        }
        const float factor =
            model_.norm(hidden(row), embedded == nullptr ? &flow_.tokens : nullptr, row);
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
    const Cut cut = this->cut(3 * panels, 1);
    const int parts = panels * cut.blocks;
    const Share mine = share(3 * parts);
    const auto multiplied = [&](int index, const Weights<Number>& weights, Buffer<float>& out) {
      const int begin = std::clamp(mine.begin - index * parts, 0, parts);
      const int end = std::clamp(mine.end - index * parts, 0, parts);
      attending([&](auto as) {
        multiply(flow_.tokens, weights, cut, begin, end,
                 Written<decltype(as)>{out.at(0), step(as)});
      });
    };
    multiplied(0, projections.query, space_.queries);
    multiplied(1, projections.key, space_.keys);
    multiplied(2, projections.value, space_.values);
  }

  void attend() const {
    if constexpr (MAY_HAVE_BF16) {
      if (model_.uses_amx && model_.attends_in_bf16) {
        const AmxTiles tiles;
        return attend_to_all<true>();
      }
    }
    attend_to_all<false>();
  }

  template <bool IN_TILES>
  void attend_to_all() const {
    const int spans = flow_.gathered.spans();
    const Share mine = share(texts_.count * spans);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int text = unit / spans, span = unit % spans;
      const int start = space_.starts[text], tokens = space_.starts[text + 1] - start;
      const int head = flow_.gathered.first_group(span);
      attending([&]<typename Factor>(Factor as) {
        const auto begun = [&](const Buffer<float>& rows) {
          return Operand{rows.at(0), step(as)}.row(start).from(head * HEAD / Factor::LANE);
        };
        corom::attend<Factor, IN_TILES && std::is_same_v<Factor, Bf16>>(
            begun(space_.queries), begun(space_.keys), begun(space_.values), tokens,
            space_.attention[member_], flow_.gathered, start, span);
      });
    }
  }

  // Queries of each text's first token.
  void project_first(const FirstProjections<Number>& projections) const {
    const Cut cut(texts_.count, projections.query.panels(), 1, members_);
    const Share mine = share(cut.parts());
    product(flow_.tokens, space_.starts.data(), projections.query, cut, mine.begin, mine.end,
            Written<Fp32>{space_.first_queries.at(0), model_.width});
  }

  // What each head of a first token looks for in the tokens: q · (W x) = (q · W) · x. The keys'
  // bias would add the same to all scores of a row, which softmax does not see.
  void turn_first(const FirstProjections<Number>& projections) const {
    const int width = model_.width, heads = model_.heads(), panels = width / PANEL;
    const Share mine = share(heads * panels);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int head = unit / panels, column = unit % panels * PANEL;
      dense<Fp32, TILE_VECTORS>({space_.first_queries.at(head * HEAD), width}, texts_.count,
                                {projections.key + std::size_t(unit) * HEAD * PANEL, PANEL}, HEAD,
                                space_.wanted.at(std::size_t(head) * width + column),
                                heads * width);
    }
  }

  // Rows `first_row` … of `first` get first tokens, and for each of their heads tokens mixed.
  void attend_first(FirstTokens<Number>& first, int first_row) const {
    const int width = model_.width, heads = model_.heads();
    const int parts = (heads + HEADS_AT_ONCE - 1) / HEADS_AT_ONCE;
    const Share mine = share(texts_.count * parts);
    for (int unit = mine.begin; unit < mine.end; unit++) {
      const int text = unit / parts, head = unit % parts * HEADS_AT_ONCE;
      const int start = space_.starts[text], tokens = space_.starts[text + 1] - start;
      attend_to_tokens(space_.wanted.at((std::size_t(text) * heads + head) * width),
                       std::min(HEADS_AT_ONCE, heads - head), hidden(start), width, tokens,
                       space_.attention[member_], first.mixed, (first_row + text) * heads + head);
      if (head == 0) {
        std::copy_n(hidden(start), width,
                    first.flow.hidden.at(std::size_t(first_row + text) * width));
      }
    }
  }

  // The mean of each text's tokens.
  void pool(float* vectors) const {
    const int width = model_.width;
    const Share mine = share(texts_.count);
    for (int text = mine.begin; text < mine.end; text++) {
      float* vector = vectors + std::size_t(text) * width;
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

  using Part<Number>::flow_, Part<Number>::hidden, Part<Number>::model_, Part<Number>::share;
  using Part<Number>::member_, Part<Number>::members_, Part<Number>::multiply;

  // Call `work` with what queries, keys, values and their weights are multiplied as.
  template <typename Work>
  void attending(const Work& work) const {
    if constexpr (MAY_HAVE_BF16 && !std::is_same_v<Number, Fp32>) {
      if (model_.attends_in_bf16) return work(Bf16());
    }
    work(Fp32());
  }
  // Lanes from one token's queries, keys or values to the next one's.
  template <typename Factor>
  int step(Factor) const {
    return model_.width / Factor::LANE;
  }

  const Texts& texts_;
  Space<Number>& space_;
};

// Texts to vectors (count, H), a step a line; `meet` returns when all members have done theirs.
// With [CLS] pooling no vectors yet: rows `first_row` … of `first` get what they are made of.
template <typename Number, typename Meet>
void encode_texts(const Model<Number>& model, const Texts& texts, Space<Number>& space,
                  FirstTokens<Number>& first, int first_row, int member, int members,
                  float* vectors, const Meet& meet) {
  const TokensPart<Number> part(model, texts, space, member, members);
  part.embed(), meet();
  for (const auto& layer : model.layers) {
    if (const auto* of_first = std::get_if<FirstProjections<Number>>(&layer->projections)) {
      part.project_first(*of_first), meet();
      part.turn_first(*of_first), meet();
      part.attend_first(first, first_row), meet();
      return;
    }
    const auto* projections = std::get_if<Projections<Number>>(&layer->projections);
    if (projections != nullptr) part.project(*projections), meet();
    part.attend(), meet();
    finish_layer(part, *layer, meet);
  }
  part.pool(vectors);
}

}  // namespace corom
