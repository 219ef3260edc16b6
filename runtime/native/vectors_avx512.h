// vectors.h by AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace corom {

using Vector = __m512;  // fp32
using Lanes = __m512i;  // of 32 bits, whatever they are
using Integers = __m512i;

// Codes of 8 bits as they are multiplied: unsigned by signed.
using Code = std::uint8_t;
using CodedWeight = std::int8_t;
constexpr int CODE_OFFSET = 128;

// Whether a CPU may multiply bf16 too, and tiles (AMX).
constexpr bool MAY_HAVE_BF16 = true;

// Vectors of a row's results that are summed up at once: of TILE rows 24 sums, 4 of the right side
// and 1 of the left are in the 32 registers.
constexpr int TILE_VECTORS = 4;

inline Vector load(const float* from) { return _mm512_load_ps(from); }
inline Vector loadu(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vector x) { _mm512_store_ps(to, x); }
inline void storeu(float* to, Vector x) { _mm512_storeu_ps(to, x); }
inline Lanes load_lanes(const void* from) { return _mm512_load_si512(from); }
inline Lanes loadu_lanes(const void* from) { return _mm512_loadu_si512(from); }
inline Lanes repeat(const void* lane) {
  std::int32_t bits;
  std::memcpy(&bits, lane, sizeof bits);
  return _mm512_set1_epi32(bits);
}

inline Integers load_integers(const std::int32_t* from) { return _mm512_load_si512(from); }
inline Vector in_fp32(Integers x) { return _mm512_cvtepi32_ps(x); }

inline Vector set1(float x) { return _mm512_set1_ps(x); }
inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
inline Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
inline Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector abs(Vector x) { return _mm512_abs_ps(x); }
inline Vector fmadd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector fnmadd(Vector a, Vector b, Vector c) { return _mm512_fnmadd_ps(a, b, c); }
inline float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }
inline float max_of(Vector x) { return _mm512_reduce_max_ps(x); }

// sums + left · right. As assembly because GCC 12 copies sums from register to register around the
// intrinsics. By value because GCC 11 keeps in memory what assembly writes by reference.
[[gnu::always_inline]] inline Vector add_products(Vector sums, Lanes left, Lanes right) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
  return sums;
}

// The first `count` values of `x`, those of `rest` behind them.
inline Vector first_of(int count, Vector x, Vector rest) {
  const __mmask16 first = count < 16 ? __mmask16((1 << count) - 1) : __mmask16(0xffff);
  return _mm512_mask_mov_ps(rest, first, x);
}

// To the nearest whole number, ties to even.
inline Vector round(Vector x) { return _mm512_roundscale_ps(x, 8); }
// x · 2^power, of whole numbers that make no subnormal one.
inline Vector scale(Vector x, Vector power) { return _mm512_scalef_ps(x, power); }
// Of sixteen values in a table those whose numbers are the last four bits of `numbers`.
inline Vector look_up(const float* table, Vector numbers) {
  return _mm512_permutexvar_ps(_mm512_castps_si512(numbers), load(table));
}

// Sixteen rows of sixteen values become sixteen columns.
inline void transpose(Vector rows[16]) {
  Vector pairs[16], quads[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const Vector* from = pairs + 4 * i;
    quads[4 * i] = _mm512_shuffle_ps(from[0], from[2], 0x44);
    quads[4 * i + 1] = _mm512_shuffle_ps(from[0], from[2], 0xee);
    quads[4 * i + 2] = _mm512_shuffle_ps(from[1], from[3], 0x44);
    quads[4 * i + 3] = _mm512_shuffle_ps(from[1], from[3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const Vector low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    const Vector odd = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    const Vector high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    const Vector last = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(odd, last, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[i + 12] = _mm512_shuffle_f32x4(odd, last, 0xdd);
  }
}

}  // namespace corom
