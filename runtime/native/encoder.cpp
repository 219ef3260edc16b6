// A BERT encoder: token ids to one un-normalized vector a text. Called from ../native_library.py
// through the functions at the end.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <variant>

#include "model.h"
#include "runner.h"

namespace {

using corom::Norm;
using corom::Weights;

// Of a linear layer (columns, inputs) and (columns,), or of a norm.
struct CoromPart {
  const float* weight;
  const float* bias;
};

// `key` has no bias in a layer for first tokens alone.
struct CoromLayer {
  CoromPart query, key, value, output, inner, outer, attention_norm, output_norm;
};

// Coefficients of corom::Activation, its `end` before them.
struct CoromActivation {
  const float* coarse;  // degree 12
  const float* fine;    // degree 16
};

// `words` and `positions` are used where they are; everything else is copied.
struct CoromModel {
  std::int64_t vocabulary, positions, width, inner_width, mean_pooled;
  float epsilon;
  CoromActivation activation;
  const float* words;
  const float* position_table;
  CoromPart norm;
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
               from.words,
               from.position_table,
               activation(from.activation),
               Norm(int(from.width), from.epsilon, from.norm.weight, from.norm.bias),
               {}} {}

  void add_layer(const CoromLayer& from) override {
    const int width = model_.width, inner = model_.inner_width;
    const auto weights = [](int columns, int inputs, const CoromPart& linear) {
      return Weights<Number>(columns, inputs, linear.weight, linear.bias);
    };
    const auto norm = [&](const CoromPart& norm) {
      return Norm(width, epsilon_, norm.weight, norm.bias);
    };
    model_.layers.push_back(std::unique_ptr<corom::Layer<Number>>(new corom::Layer<Number>{
        weights(width, width, from.query), weights(width, width, from.output),
        weights(inner, width, from.inner), weights(width, inner, from.outer),
        norm(from.attention_norm), norm(from.output_norm), projections(from)}));
  }

  std::unique_ptr<corom::AnyRunner> runner(int threads) const override {
    return std::make_unique<corom::Runner<Number>>(model_, threads);
  }

 private:
  using Model = corom::Model<Number>;

  std::variant<corom::Projections<Number>, corom::FirstProjections> projections(
      const CoromLayer& from) const {
    const int width = model_.width;
    if (from.key.bias != nullptr) {
      return corom::Projections<Number>{
          Weights<Number>(width, width, from.key.weight, from.key.bias),
          Weights<Number>(width, width, from.value.weight, from.value.bias)};
    }
    corom::FirstProjections first{
        corom::Buffer<float>(std::size_t(width) * width),
        Weights<corom::Fp32>(width, width, from.value.weight, from.value.bias)};
    std::copy_n(from.key.weight, std::size_t(width) * width, first.key.at(0));
    return first;
  }

  static auto activation(const CoromActivation& from) {
    const float* all = Model::DEGREE == 12 ? from.coarse : from.fine;
    corom::Activation<Model::DEGREE> activation{all[0], {}};
    std::copy_n(all + 1, Model::DEGREE + 1, activation.coefficients);
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
int corom_interface() { return 3; }

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
