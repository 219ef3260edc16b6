// vectors.h by AVX2 and FMA, in two halves.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace corom {

struct Vector {  // fp32
  __m256 low, high;
};
using Lanes = Vector;  // of 32 bits, whatever they are
struct Integers {
  __m256i low, high;
};

// Codes of 8 bits as they are multiplied: of the instructions for 8 bits, which are as fast as
// those for 16, the one would saturate.
using Code = std::int16_t;
using CodedWeight = std::int16_t;
constexpr int CODE_OFFSET = 0;

// Whether a CPU may multiply bf16 too, and tiles (AMX).
constexpr bool MAY_HAVE_BF16 = false;

// Vectors of a row's results that are summed up at once: of TILE rows 12 sums, 2 of the right side
// and 1 of the left are in the 16 registers.
constexpr int TILE_VECTORS = 1;

inline Vector load(const float* from) { return {_mm256_load_ps(from), _mm256_load_ps(from + 8)}; }
inline Vector loadu(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
inline void store(float* to, Vector x) {
  _mm256_store_ps(to, x.low);
  _mm256_store_ps(to + 8, x.high);
}
inline void storeu(float* to, Vector x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}

inline Vector set1(float x) {
  const __m256 half = _mm256_set1_ps(x);
  return {half, half};
}
inline Vector zero() { return set1(0.0f); }
inline Lanes load_lanes(const void* from) { return load(static_cast<const float*>(from)); }
inline Lanes loadu_lanes(const void* from) { return loadu(static_cast<const float*>(from)); }
inline Lanes repeat(const void* lane) {
  float bits;
  std::memcpy(&bits, lane, sizeof bits);
  return set1(bits);
}
inline Integers load_integers(const std::int32_t* from) {
  const auto* halves = reinterpret_cast<const __m256i*>(from);
  return {_mm256_load_si256(halves), _mm256_load_si256(halves + 1)};
}
inline Vector in_fp32(Integers x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}

inline Vector add(Vector a, Vector b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Vector sub(Vector a, Vector b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Vector mul(Vector a, Vector b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Vector min(Vector a, Vector b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Vector max(Vector a, Vector b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Vector abs(Vector x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Vector fmadd(Vector a, Vector b, Vector c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vector fnmadd(Vector a, Vector b, Vector c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline float sum_of(Vector x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float max_of(Vector x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// sums + left · right. As assembly, by value, for the reasons in vectors_avx512.h.
[[gnu::always_inline]] inline Vector add_products(Vector sums, Lanes left, Lanes right) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sums.low) : "x"(left.low), "x"(right.low));
  asm("vfmadd231ps %2, %1, %0" : "+x"(sums.high) : "x"(left.high), "x"(right.high));
  return sums;
}

// The first `count` values of `x`, those of `rest` behind them.
inline Vector first_of(int count, Vector x, Vector rest) {
  const __m256i counts = _mm256_set1_epi32(count);
  const auto kept = [&](__m256i places) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(counts, places));
  };
  return {
      _mm256_blendv_ps(rest.low, x.low, kept(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
      _mm256_blendv_ps(rest.high, x.high, kept(_mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)))};
}

// To the nearest whole number, ties to even.
inline Vector round(Vector x) {
  constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, NEAREST), _mm256_round_ps(x.high, NEAREST)};
}
// x · 2^power, of whole numbers that make no subnormal one.
inline Vector scale(Vector x, Vector power) {
  const auto half = [](__m256 of_x, __m256 of_power) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(of_power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(of_x), exponent));
  };
  return {half(x.low, power.low), half(x.high, power.high)};
}
// Of sixteen values in a table those whose numbers are the last four bits of `numbers`.
inline Vector look_up(const float* table, Vector numbers) {
  const Vector of = load(table);
  const auto half = [&](__m256 own) {
    const __m256i number = _mm256_castps_si256(own);
    const __m256 in_high = _mm256_castsi256_ps(_mm256_slli_epi32(number, 28));  // its sign says
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(of.low, number),
                            _mm256_permutevar8x32_ps(of.high, number), in_high);
  };
  return {half(numbers.low), half(numbers.high)};
}

// Eight rows of eight values become eight columns.
inline void transpose_eight(__m256 rows[8]) {
  __m256 pairs[8], quads[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const __m256* from = pairs + 4 * i;
    quads[4 * i] = _mm256_shuffle_ps(from[0], from[2], 0x44);
    quads[4 * i + 1] = _mm256_shuffle_ps(from[0], from[2], 0xee);
    quads[4 * i + 2] = _mm256_shuffle_ps(from[1], from[3], 0x44);
    quads[4 * i + 3] = _mm256_shuffle_ps(from[1], from[3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// Sixteen rows of sixteen values become sixteen columns.
inline void transpose(Vector rows[16]) {
  __m256 quarters[4][8];  // low and high halves of the first eight rows, then of the others
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    quarters[0][i] = rows[i].low, quarters[1][i] = rows[i].high;
    quarters[2][i] = rows[i + 8].low, quarters[3][i] = rows[i + 8].high;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) transpose_eight(quarters[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    rows[i] = {quarters[0][i], quarters[2][i]};
    rows[i + 8] = {quarters[1][i], quarters[3][i]};
  }
}

}  // namespace corom
