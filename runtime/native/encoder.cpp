// A BERT encoder: token ids to one un-normalized vector a text. Called from ../native_library.py
// through the functions at the end.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "amx.h"
#include "model.h"
#include "runner.h"

namespace {

using corom::Linear;
using corom::Norm;
using corom::Weights;

// Each (H,). `smoothing` is null where no codes are made of the rows.
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

// Where its bump ends, then the coefficients of corom::Activation, those of a power beside each
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
  virtual std::unique_ptr<corom::AnyRunner> runner(int threads) const = 0;
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
               !std::is_same_v<Number, corom::Fp32> && from.attends_in_bf16 != 0,
               !std::is_same_v<Number, corom::Fp32> && from.uses_amx != 0,
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
    model_.layers.push_back(std::unique_ptr<corom::Layer<Number>>(new corom::Layer<Number>{
        Weights<Number>(model_.arena, width, width, corom::GATHERED_SPAN<Number>,
                        from.output.weight, from.output.bias),
        of_tokens(inner, from.inner, attention_norm.smoothing(), steps),
        Weights<Number>(model_.arena, width, inner, corom::INNER_SPAN<Number>, from.outer.weight,
                        from.outer.bias, step.data()),
        std::move(attention_norm), norm(width, from.output_norm), projections(from, smoothing)}));
  }

  std::unique_ptr<corom::AnyRunner> runner(int threads) const override {
    return std::make_unique<corom::Runner<Number>>(model_, threads);
  }

 private:
  using Model = corom::Model<Number>;

  Norm norm(int width, const CoromNorm& from) const {
    return Norm(width, epsilon_, from.weight, from.bias, from.smoothing);
  }

  // Weights that multiply tokens, whose values a norm has divided by their `smoothing`.
  Weights<Number> of_tokens(int columns, const Linear& from, const float* smoothing,
                            float times = 1) {
    return Weights<Number>(model_.arena, columns, model_.width, corom::TOKEN_SPAN, from.weight,
                           from.bias, corom::is_coded<Number> ? smoothing : nullptr, times);
  }

  corom::AnyProjections<Number> projections(const CoromLayer& from, const float* smoothing) {
    const int width = model_.width;
    if (from.key.bias != nullptr) {
      if (model_.layers.empty() &&
          corom::EmbeddedProjections::fit(width, model_.vocabulary, model_.positions_there)) {
        try {
          return std::make_unique<corom::EmbeddedProjections>(
              model_.arena, width, model_.words, model_.vocabulary, model_.positions,
              model_.positions_there, model_.norm, std::array{from.query, from.key, from.value});
        } catch (const std::bad_alloc&) {  // as where a process may have no more addresses
        }
      }
      return corom::Projections<Number>{of_tokens(width, from.query, smoothing),
                                        of_tokens(width, from.key, smoothing),
                                        of_tokens(width, from.value, smoothing)};
    }
    float* key = model_.arena.template take<float>(std::size_t(width) * width);
    float* to = key;
    for (int head = 0; head < width; head += corom::HEAD) {
      for (int column = 0; column < width; column += corom::PANEL) {
        for (int row = head; row < head + corom::HEAD; row++) {
          to = std::copy_n(from.key.weight + std::size_t(row) * width + column, corom::PANEL, to);
        }
      }
    }
    return corom::FirstProjections<Number>{
        of_tokens(width, from.query, smoothing), key,
        Weights<corom::Fp32>(model_.arena, width, width, width, from.value.weight,
                             from.value.bias)};
  }

  static auto activation(const CoromActivation& from) {
    const float* all = std::is_same_v<Number, corom::Fp32> ? from.fine : from.coarse;
    corom::Activation<Model::DEGREE> activation{{}, 15 / all[0]};
    std::transform(all + 1, all + 1 + 16 * (Model::DEGREE + 1), activation.coefficients[0],
                   [&](float of_one) { return of_one * activation.steps; });
    return activation;
  }

  float epsilon_;
  Model model_;
};

}  // namespace

// The interface in C. What cannot be had for want of memory or threads is null, or NO_MEMORY: no
// exception goes beyond.
extern "C" {

enum Result { DONE = 0, NO_MEMORY = 1, NOT_ENCODABLE = 2 };
enum Precision { FP32 = 0, BF16 = 1, INT8 = 2 };

// Raised with every change of what is below: INTERFACE of ../native_library.py.
int corom_interface() { return 6; }

// Whether this process may use AMX from now on.
int corom_ask_for_amx() { return corom::ask_for_amx(); }

void* corom_encoder(const CoromModel* from, int precision) {
  try {
    AnyEncoder* encoder = nullptr;
    if (precision == FP32) encoder = new EncoderOf<corom::Fp32>(*from);
    if (precision == BF16) encoder = new EncoderOf<corom::Bf16>(*from);
    if (precision == INT8) encoder = new EncoderOf<corom::Int8>(*from);
    return encoder;
  } catch (...) {
    return nullptr;
  }
}

int corom_add_layer(void* encoder, const CoromLayer* from) {
  try {
    static_cast<AnyEncoder*>(encoder)->add_layer(*from);
    return DONE;
  } catch (...) {
    return NO_MEMORY;
  }
}

void corom_free_encoder(void* encoder) { delete static_cast<AnyEncoder*>(encoder); }

// The encoder must outlive the runner.
void* corom_runner(const void* encoder, int threads) {
  try {
    return static_cast<const AnyEncoder*>(encoder)->runner(threads).release();
  } catch (...) {
    return nullptr;
  }
}

void corom_free_runner(void* runner) { delete static_cast<corom::AnyRunner*>(runner); }

// ids (count, width) and lengths (count) to vectors (count, H). One call at a time.
int corom_run(void* handle, const std::int64_t* ids, const std::int64_t* lengths, int count,
              int width, float* vectors) {
  corom::AnyRunner& runner = *static_cast<corom::AnyRunner*>(handle);
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
