// The kernels for CPUs with AVX-512; bf16 and codes need more, which ../native_library.py looks
// for.

#include <memory>

#include "bf16.h"
#include "encoder.h"
#include "fp32.h"
#include "int8_avx512.h"
#include "interface.h"

std::unique_ptr<corom::AnyEncoder> corom::make_encoder(const CoromModel& from, int precision) {
  switch (precision) {
    case FP32:
      return std::make_unique<EncoderOf<Fp32>>(from);
    case BF16:
      return std::make_unique<EncoderOf<Bf16>>(from);
    case INT8:
      return std::make_unique<EncoderOf<Int8>>(from);
    default:
      return nullptr;
  }
}
