// Functions of sixteen values at once.
#pragma once

#include "vectors.h"

namespace corom {

// e to the power of x, to two units in the last place. Below -80 it is e^-80: small enough to
// vanish from a softmax, large enough that no product of it becomes a slow subnormal number.
inline Vector exponential(Vector x) {
  x = min(max(x, set1(-80.0f)), set1(88.0f));
  const Vector power = round(mul(x, set1(1.44269504f)));
  Vector rest = fnmadd(power, set1(0.693359375f), x);
  rest = fnmadd(power, set1(-2.12194440e-4f), rest);
  Vector sum = set1(1.9875691500e-4f);
  sum = fmadd(sum, rest, set1(1.3981999507e-3f));
  sum = fmadd(sum, rest, set1(8.3334519073e-3f));
  sum = fmadd(sum, rest, set1(4.1665795894e-2f));
  sum = fmadd(sum, rest, set1(1.6666665459e-1f));
  sum = fmadd(sum, rest, set1(5.0000001201e-1f));
  sum = fmadd(sum, mul(rest, rest), add(rest, set1(1.0f)));
  return scale(sum, power);
}

// ReLU, GELU and its tanh form are all max(x, 0) less a bump that depends on |x| alone and is gone
// after fifteen steps. The bump is made of polynomials, one around each of the sixteen points that
// are whole steps, in what |x| is above or below; the exporter chooses them. Values are given and
// returned in steps, which the weights before and behind take care of.
template <int DEGREE>
struct alignas(64) Activation {
  float coefficients[DEGREE + 1][16];
  float steps;  // that make 1

  Vector operator()(Vector x) const {
    const Vector size = min(abs(x), set1(15.0f));
    // So large a sum has no digits behind the point: its last bits are the number of the nearest.
    const Vector large = set1(0x1.8p23f);
    const Vector nearest = add(size, large);
    const Vector rest = sub(size, sub(nearest, large));
    Vector bump = look_up(coefficients[DEGREE], nearest);
#pragma GCC unroll 8
    for (int power = DEGREE - 1; power >= 0; power--) {
      bump = fmadd(bump, rest, look_up(coefficients[power], nearest));
    }
    return sub(max(x, zero()), bump);
  }
};

}  // namespace corom
