// The kernels for CPUs with AVX2 and FMA.

#include <memory>

#include "encoder.h"
#include "fp32.h"
#include "int8_avx2.h"
#include "interface.h"

std::unique_ptr<corom::AnyEncoder> corom::make_encoder(const CoromModel& from, int precision) {
  switch (precision) {
    case FP32:
      return std::make_unique<EncoderOf<Fp32>>(from);
    case INT8:
      return std::make_unique<EncoderOf<Int8>>(from);
    default:
      return nullptr;
  }
}
