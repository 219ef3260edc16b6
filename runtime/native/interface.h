// The interface in C: token ids to one un-normalized vector a text, called from
// ../native_library.py. What cannot be had for want of memory or threads is null, or NO_MEMORY: no
// exception goes beyond.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#include "amx_tiles.h"
#include "encoder.h"
#include "runner.h"
#include "steps.h"

namespace corom {

enum Precision { FP32 = 0, BF16 = 1, INT8 = 2 };

// Without layers; null for a precision that these kernels are not compiled for. Each of avx512.cpp
// and avx2.cpp has its own.
std::unique_ptr<AnyEncoder> make_encoder(const CoromModel& from, int precision);

}  // namespace corom

extern "C" {

enum Result { DONE = 0, NO_MEMORY = 1, NOT_ENCODABLE = 2 };

// Raised with every change of what is below: INTERFACE of ../native_library.py.
int corom_interface() { return 7; }

// Whether this process may use AMX from now on.
int corom_ask_for_amx() { return corom::ask_for_amx(); }

void* corom_encoder(const corom::CoromModel* from, int precision) {
  try {
    return corom::make_encoder(*from, precision).release();
  } catch (...) {
    return nullptr;
  }
}

int corom_add_layer(void* encoder, const corom::CoromLayer* from) {
  try {
    static_cast<corom::AnyEncoder*>(encoder)->add_layer(*from);
    return DONE;
  } catch (...) {
    return NO_MEMORY;
  }
}

void corom_free_encoder(void* encoder) { delete static_cast<corom::AnyEncoder*>(encoder); }

// The encoder must outlive the runner.
void* corom_runner(const void* encoder, int threads) {
  try {
    return static_cast<const corom::AnyEncoder*>(encoder)->runner(threads).release();
  } catch (...) {
    return nullptr;
  }
}

void corom_free_runner(void* runner) { delete static_cast<corom::AnyRunner*>(runner); }

// ids (count, width) and lengths (count) to vectors (count, H). One call at a time. `wanted` and
// `serve`: see Preemption; null for none.
int corom_run(void* handle, const std::int64_t* ids, const std::int64_t* lengths, int count,
              int width, float* vectors, const std::atomic<int>* wanted, void (*serve)()) {
  corom::AnyRunner& runner = *static_cast<corom::AnyRunner*>(handle);
  const corom::Texts texts{ids, lengths, count, width};
  if (count == 0) return DONE;
  if (!runner.can_run(texts)) return NOT_ENCODABLE;
  try {
    runner.run(texts, vectors, {wanted, serve});
    return DONE;
  } catch (const std::exception&) {  // not the unwinding of a thread that Python ends in `serve`
    return NO_MEMORY;
  }
}

}  // extern "C"
