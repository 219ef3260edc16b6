// Functions of sixteen values at once.
#pragma once

#include <immintrin.h>

namespace corom {

// e to the power of x, to two units in the last place. Below -80 it is e^-80: small enough to
// vanish from a softmax, large enough that no product of it becomes a slow subnormal number.
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-80.0f)), _mm512_set1_ps(88.0f));
  const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3981999507e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(8.3334519073e-3f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(4.1665795894e-2f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.6666665459e-1f));
  sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.0000001201e-1f));
  sum = _mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(sum, power);
}

// ReLU, GELU and its tanh form are all max(x, 0) less a bump that depends on |x| alone and is gone
// after fifteen steps. The bump is made of polynomials, one around each of the sixteen points that
// are whole steps, in what |x| is above or below; the exporter chooses them. Values are given and
// returned in steps, which the weights before and behind take care of.
template <int DEGREE>
struct alignas(64) Activation {
  float coefficients[DEGREE + 1][16];
  float steps;  // that make 1

  __m512 operator()(__m512 x) const {
    const __m512 size = _mm512_min_ps(_mm512_abs_ps(x), _mm512_set1_ps(15.0f));
    // So large a sum has no digits behind the point: its last bits are the number of the nearest.
    const __m512 large = _mm512_set1_ps(0x1.8p23f);
    const __m512 rounded = _mm512_add_ps(size, large);
    const __m512i nearest = _mm512_castps_si512(rounded);
    const __m512 rest = _mm512_sub_ps(size, _mm512_sub_ps(rounded, large));
    __m512 bump = _mm512_permutexvar_ps(nearest, _mm512_load_ps(coefficients[DEGREE]));
#pragma GCC unroll 8
    for (int power = DEGREE - 1; power >= 0; power--) {
      bump = _mm512_fmadd_ps(bump, rest,
                             _mm512_permutexvar_ps(nearest, _mm512_load_ps(coefficients[power])));
    }
    return _mm512_sub_ps(_mm512_max_ps(x, _mm512_setzero_ps()), bump);
  }
};

// Sixteen rows of sixteen values become sixteen columns.
inline void transpose(__m512 rows[16]) {
  __m512 pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512* from = pairs + 4 * i;
    quads[4 * i] = _mm512_shuffle_ps(from[0], from[2], 0x44);
    quads[4 * i + 1] = _mm512_shuffle_ps(from[0], from[2], 0xee);
    quads[4 * i + 2] = _mm512_shuffle_ps(from[1], from[3], 0x44);
    quads[4 * i + 3] = _mm512_shuffle_ps(from[1], from[3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512 low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    const __m512 high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    const __m512 last = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(odd, last, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[i + 12] = _mm512_shuffle_f32x4(odd, last, 0xdd);
  }
}

}  // namespace corom
