// One instruction of every product.
#pragma once

#include <immintrin.h>

#include "rows.h"

namespace corom {

// sums + inputs · weights, LANE products a value. As assembly because GCC 12 copies sums from
// register to register around the intrinsics, and because not all CPUs here have all of these. By
// value because GCC 11 keeps in memory what assembly writes by reference.
[[gnu::always_inline]] inline __m512 add_products(__m512 sums, __m512i inputs, __m512i weights,
                                                  Fp32) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}
[[gnu::always_inline]] inline __m512 add_products(__m512 sums, __m512i inputs, __m512i weights,
                                                  Bf16) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}
[[gnu::always_inline]] inline __m512i add_products(__m512i sums, __m512i inputs, __m512i weights,
                                                   Int8) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}

}  // namespace corom
