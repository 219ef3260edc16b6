// A BERT encoder: its weights as they are given, and what is made of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "model.h"
#include "norm.h"
#include "runner.h"
#include "weights.h"

namespace corom {

// The structures are part of the interface in C. Each (H,). `smoothing` is null where no codes are
// made of the rows.
struct CoromNorm {
  const float* weight;
  const float* bias;
  const float* smoothing;
};

// `key` has no bias in a layer for first tokens alone.
struct CoromLayer {
  Linear query, key, value, output, inner, outer;
  CoromNorm attention_norm, output_norm;
};

// Where its bump ends, then the coefficients of Activation, those of a power beside each
// other.
struct CoromActivation {
  const float* coarse;  // degree 3
  const float* fine;    // degree 5
};

// `words` and `positions` are used where they are; everything else is copied.
struct CoromModel {
  std::int64_t vocabulary, positions, width, inner_width, mean_pooled, attends_in_bf16, uses_amx;
  float epsilon;
  CoromActivation activation;
  const float* words;
  const float* position_table;
  CoromNorm norm;
};

// An encoder in whatever numbers it is executed.
class AnyEncoder {
 public:
  virtual ~AnyEncoder() = default;
  virtual void add_layer(const CoromLayer& from) = 0;
  virtual std::unique_ptr<AnyRunner> runner(int threads) const = 0;
};

template <typename Number>
class EncoderOf : public AnyEncoder {
 public:
  explicit EncoderOf(const CoromModel& from)
      : epsilon_(from.epsilon),
        model_{int(from.width),
               int(from.inner_width),
               from.vocabulary,
               from.positions,
               from.mean_pooled != 0,
               NARROW && from.attends_in_bf16 != 0,
               NARROW && from.uses_amx != 0,
               from.words,
               from.position_table,
               activation(from.activation),
               norm(int(from.width), from.norm),
               {},
               {}} {}

  void add_layer(const CoromLayer& from) override {
    const int width = model_.width, inner = model_.inner_width;
    Norm attention_norm = norm(width, from.attention_norm);
    const float* smoothing = model_.layers.empty() ? model_.norm.smoothing()
                                                   : model_.layers.back()->output_norm.smoothing();
    const float steps = model_.activation.steps;
    const std::vector<float> step(inner, 1 / steps);
    model_.layers.push_back(std::unique_ptr<Layer<Number>>(new Layer<Number>{
        Weights<Number>(model_.arena, width, width, GATHERED_SPAN<Number>, from.output.weight,
                        from.output.bias),
        of_tokens(inner, from.inner, attention_norm.smoothing(), steps),
        Weights<Number>(model_.arena, width, inner, INNER_SPAN<Number>, from.outer.weight,
                        from.outer.bias, step.data()),
        std::move(attention_norm), norm(width, from.output_norm), projections(from, smoothing)}));
  }

  std::unique_ptr<AnyRunner> runner(int threads) const override {
    return std::make_unique<Runner<Number>>(model_, threads);
  }

 private:
  // Whether bf16 and tiles may be multiplied beside these numbers.
  static constexpr bool NARROW = MAY_HAVE_BF16 && !std::is_same_v<Number, Fp32>;
  using Model = corom::Model<Number>;

  Norm norm(int width, const CoromNorm& from) const {
    return Norm(width, epsilon_, from.weight, from.bias, from.smoothing);
  }

  // Weights that multiply tokens, whose values a norm has divided by their `smoothing`.
  Weights<Number> of_tokens(int columns, const Linear& from, const float* smoothing,
                            float times = 1) {
    return Weights<Number>(model_.arena, columns, model_.width, TOKEN_SPAN, from.weight, from.bias,
                           is_coded<Number> ? smoothing : nullptr, times);
  }

  AnyProjections<Number> projections(const CoromLayer& from, const float* smoothing) {
    const int width = model_.width;
    if (from.key.bias != nullptr) {
      if (model_.layers.empty() &&
          EmbeddedProjections::fit(width, model_.vocabulary, model_.positions_there)) {
        try {
          return std::make_unique<EmbeddedProjections>(
              model_.arena, width, model_.words, model_.vocabulary, model_.positions,
              model_.positions_there, model_.norm, std::array{from.query, from.key, from.value});
        } catch (const std::bad_alloc&) {  // as where a process may have no more addresses
        }
      }
      return Projections<Number>{of_tokens(width, from.query, smoothing),
                                 of_tokens(width, from.key, smoothing),
                                 of_tokens(width, from.value, smoothing)};
    }
    float* key = model_.arena.template take<float>(std::size_t(width) * width);
    float* to = key;
    for (int head = 0; head < width; head += HEAD) {
      for (int column = 0; column < width; column += PANEL) {
        for (int row = head; row < head + HEAD; row++) {
          to = std::copy_n(from.key.weight + std::size_t(row) * width + column, PANEL, to);
        }
      }
    }
    return FirstProjections<Number>{
        of_tokens(width, from.query, smoothing), key,
        Weights<Fp32>(model_.arena, width, width, width, from.value.weight, from.value.bias)};
  }

  static auto activation(const CoromActivation& from) {
    const float* all = std::is_same_v<Number, Fp32> ? from.fine : from.coarse;
    Activation<Model::DEGREE> activation{{}, 15 / all[0]};
    std::transform(all + 1, all + 1 + 16 * (Model::DEGREE + 1), activation.coefficients[0],
                   [&](float of_one) { return of_one * activation.steps; });
    return activation;
  }

  float epsilon_;
  Model model_;
};

}  // namespace corom
