// Sixteen values of 32 bits at once, of which everything here is made. What only some CPUs with
// AVX-512 have, for numbers other than fp32, is called by its own name where it is used, and not
// compiled for AVX2.
#pragma once

#ifdef __AVX512F__
#include "vectors_avx512.h"
#else
#include "vectors_avx2.h"
#endif
