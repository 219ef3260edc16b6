// How fp32 is written and multiplied.
#pragma once

#include <cstddef>

#include "buffer.h"
#include "operands.h"
#include "rows.h"
#include "vectors.h"

namespace corom {

// Write values as they will be multiplied: sixteen, or twice as many.
inline void write(Vector values, float* lanes, Fp32) { store(lanes, values); }
inline void write(Vector first, Vector second, float* lanes, Fp32) {
  store(lanes, first);
  store(lanes + 16, second);
}

// sums + inputs · weights, LANE products a value.
[[gnu::always_inline]] inline Vector add_products(Vector sums, Lanes inputs, Lanes weights, Fp32) {
  return add_products(sums, inputs, weights);
}

// Values (tokens, HEAD / LANE) as attention sums them up: where they are.
inline Operand summed(Operand values, int, Buffer<float>&, std::size_t, Fp32) { return values; }

// A softmax's rows of `width` weights as attention multiplies them: where they are.
inline Operand weights_of(float* weights, int width, int, Fp32) { return {weights, width}; }

}  // namespace corom
