// Each text's first token in the last layer of a model that needs no other: from attention on,
// those of several executions at once, or the layer's weights would be read for a few rows each
// time.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "attention.h"
#include "flow.h"
#include "model.h"
#include "product.h"
#include "rows.h"
#include "share.h"
#include "written.h"

namespace corom {

// B first tokens, heads n.
template <typename Number>
struct FirstTokens {
  static constexpr int ENOUGH = 64;  // from which on more at once gain nothing

  Flow<Number> flow;
  Rows<Fp32> mixed;             // (B · n, H), tokens mixed by the scores of each head
  Buffer<float> values;         // (B, H)
  std::vector<int> by_head;     // (n, B) rows of `mixed`
  std::vector<float*> vectors;  // where each token's vector goes

  void reserve(const Model<Number>& model, std::size_t texts) {
    flow.reserve(model, texts);
    mixed.reserve(texts * model.heads(), model.width, GROUP);
    values.reserve(texts * model.width);
    by_head.reserve(texts * model.heads());
    vectors.reserve(texts);
  }

  // Room for those of some texts, for which memory was reserved; the first one's row.
  int add(const Model<Number>& model, int texts, float* into) {
    const int row = flow.count;
    for (int text = 0; text < texts; text++) {
      vectors.push_back(into + std::size_t(text) * model.width);
    }
    flow.count += texts;
    return row;
  }

  // All that were added are there.
  void begin(const Model<Number>& model) {
    const int heads = model.heads();
    by_head.resize(std::size_t(flow.count) * heads);
    for (int row = 0; row < int(by_head.size()); row++) {
      by_head[row % heads * flow.count + row / heads] = row;
    }
  }

  void clear() {
    vectors.clear();
    flow.count = 0;
  }
};

template <typename Number>
class FirstTokensPart : public Part<Number> {
 public:
  FirstTokensPart(const Model<Number>& model, FirstTokens<Number>& first, int member, int members)
      : Part<Number>(model, first.flow, member, members), first_(first) {}

  // The values of mixed tokens are the values mixed.
  void gather(const FirstProjections<Number>& projections) const {
    const int rows = flow_.count;
    constexpr int PANELS = HEAD / PANEL;
    const Share mine = share(model_.heads());
    for (int head = mine.begin; head < mine.end; head++) {
      product(first_.mixed, &first_.by_head[std::size_t(head) * rows], projections.value,
              Cut(rows, PANELS, 1, 1), PANELS * head, PANELS * (head + 1),
              Written<Fp32>{first_.values.at(0), model_.width});
    }
  }

  void write() const {
    const Share mine = share(flow_.gathered.spans());
    for (int span = mine.begin; span < mine.end; span++) {
      write_mixed(first_.values.at(flow_.gathered.first_group(span) * GROUP), model_.width,
                  flow_.count, flow_.gathered, 0, span);
    }
  }

  void pool() const {
    const Share mine = share(flow_.count);
    for (int row = mine.begin; row < mine.end; row++) {
      std::memcpy(first_.vectors[row], hidden(row), model_.width * sizeof(float));
    }
  }

 private:
  using Part<Number>::flow_, Part<Number>::hidden, Part<Number>::model_, Part<Number>::share;

  FirstTokens<Number>& first_;
};

// First tokens to vectors, from where `encode_texts` left them.
template <typename Number, typename Meet>
void encode_first_tokens(const Model<Number>& model, FirstTokens<Number>& first, int member,
                         int members, const Meet& meet) {
  const FirstTokensPart<Number> part(model, first, member, members);
  const Layer<Number>& layer = *model.layers.back();
  part.gather(std::get<FirstProjections<Number>>(layer.projections)), meet();
  part.write(), meet();
  finish_layer(part, layer, meet);
  part.pool();
}

}  // namespace corom
