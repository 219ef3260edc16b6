// Rows on their way through the layers, and what a layer does with them behind attention.
#pragma once

#include <cstddef>
#include <type_traits>

#include "activated.h"
#include "amx.h"
#include "buffer.h"
#include "model.h"
#include "product.h"
#include "rows.h"
#include "share.h"
#include "written.h"

namespace corom {

// Tokens of some texts, `count` in all, a row each.
template <typename Number>
struct Flow {
  int count = 0;
  Buffer<float> hidden;           // (count, H), where the residuals stay
  Rows<Number> tokens, gathered;  // the same
  Rows<Number> inner;

  void reserve(const Model<Number>& model, std::size_t rows) {
    hidden.reserve(rows * model.width);
    rows += model.spare_rows();
    tokens.reserve(rows, model.width, TOKEN_SPAN);
    gathered.reserve(rows, model.width, GATHERED_SPAN<Number>);
    inner.reserve(rows, model.inner_width, INNER_SPAN<Number>);
  }
};

// One member's part of every step. Between two steps the members meet.
template <typename Number>
class Part {
 public:
  Part(const Model<Number>& model, Flow<Number>& flow, int member, int members)
      : model_(model), flow_(flow), member_(member), members_(members) {}

  // hidden += what attention gathered · weights + bias
  void output(const Layer<Number>& layer) const {
    multiply_all(flow_.gathered, layer.output, added());
  }

  // hidden and tokens = its norm
  void norm_attention(const Layer<Number>& layer) const { normalize(layer.attention_norm); }

  // inner = activation(tokens · weights + bias)
  void widen(const Layer<Number>& layer) const {
    constexpr int PANELS = INNER_SPAN<Number> / PANEL;
    if (model_.uses_amx)
      multiply_all(flow_.tokens, layer.inner, activated<AmxBlock::ROWS>(), PANELS);
    else
      multiply_all(flow_.tokens, layer.inner, activated<TILE>(), PANELS);
  }

  // hidden += inner · weights + bias
  void narrow(const Layer<Number>& layer) const { multiply_all(flow_.inner, layer.outer, added()); }

  // hidden and tokens = the layer's output
  void norm_output(const Layer<Number>& layer) const { normalize(layer.output_norm); }

 protected:
  Cut cut(int panels, int together) const {
    return Cut(flow_.count, panels, together, members_, model_.uses_amx ? AmxBlock::ROWS : TILE);
  }

  // Parts `begin` to `end` of a product.
  template <typename Store>
  void multiply(const Rows<Number>& from, const Weights<Number>& weights, const Cut& cut, int begin,
                int end, Store&& store) const {
    if constexpr (MAY_HAVE_BF16 && !std::is_same_v<Number, Fp32>) {
      if (model_.uses_amx) return amx_product(from, weights, cut, begin, end, store);
    }
    product(from, nullptr, weights, cut, begin, end, store);
  }

  Share share(int count) const { return Share(count, member_, members_); }
  float* hidden(int row) const { return flow_.hidden.at(std::size_t(row) * model_.width); }

  const Model<Number>& model_;
  Flow<Number>& flow_;
  const int member_, members_;

 private:
  template <int ROWS>
  Activated<Number, ROWS> activated() const {
    return {model_.activation, flow_.inner};
  }
  Added added() const { return {flow_.hidden.at(0), model_.width}; }

  // This member's part of the product of all rows and weights, `together` panels of these at once.
  template <typename Store>
  void multiply_all(const Rows<Number>& from, const Weights<Number>& weights, Store&& store,
                    int together = 1) const {
    const Cut cut = this->cut(weights.panels(), together);
    const Share mine = share(cut.parts());
    multiply(from, weights, cut, mine.begin, mine.end, store);
  }

  void normalize(const Norm& norm) const {
    const Share mine = share(flow_.count);
    for (int row = mine.begin; row < mine.end; row++) norm(hidden(row), &flow_.tokens, row);
  }
};

// What a layer does with rows behind attention, a step a line; `meet` returns when all members
// have done theirs.
template <typename Number, typename Meet>
void finish_layer(const Part<Number>& part, const Layer<Number>& layer, const Meet& meet) {
  part.output(layer), meet();
  part.norm_attention(layer), meet();
  part.widen(layer), meet();
  part.narrow(layer), meet();
  part.norm_output(layer), meet();
}

}  // namespace corom
