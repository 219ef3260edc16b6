// Tiles (AMX): sixteen rows of 64 bytes, multiplied with as many of sixteen columns in one
// instruction.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "rows.h"

namespace corom {

// Ask the system to keep tiles for the threads of this process. Whether it does.
inline bool ask_for_amx() {
  constexpr long PERMISSION = 0x1023, TILE_DATA = 18;  // of the system call; the state's number
  return syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0;
}

// The tiles of a thread while it multiplies: 0 to 3 have sums, the others what is multiplied. All
// are whole, as other shapes take longer to set than they save. As assembly, like every instruction
// that not all CPUs with AVX-512 have.
class AmxTiles {
 public:
  static constexpr int ROWS = 16, BYTES = 64;

  AmxTiles() {
    Shapes own;
    own.palette = 1;
    for (int tile = 0; tile < 8; tile++) own.bytes[tile] = BYTES, own.rows[tile] = ROWS;
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(own));
  }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  // As they were: oneDNN, in the same thread, sets its own once and relies on them.
  ~AmxTiles() { asm volatile("ldtilecfg %0" ::"m"(before_)); }

  template <int TILE>
  [[gnu::always_inline]] static void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
  }
  // Rows are `step` bytes apart; 0 takes the same one for all.
  template <int TILE>
  [[gnu::always_inline]] static void load(const void* from, std::size_t step) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(TILE), "r"(from), "r"(step) : "memory");
  }
  // The same, of what will not be read again soon: it leaves its place in the nearest cache.
  template <int TILE>
  [[gnu::always_inline]] static void load_passing(const void* from, std::size_t step) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(TILE), "r"(from), "r"(step) : "memory");
  }
  template <int TILE>
  [[gnu::always_inline]] static void store(void* to, std::size_t step) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(TILE), "r"(to), "r"(step) : "memory");
  }
  template <int SUMS, int VALUES, int WEIGHTS>
  [[gnu::always_inline]] static void add_products(Int8) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(VALUES), "i"(WEIGHTS));
  }
  template <int SUMS, int VALUES, int WEIGHTS>
  [[gnu::always_inline]] static void add_products(Bf16) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(VALUES), "i"(WEIGHTS));
  }

 private:
  struct alignas(64) Shapes {  // as the instructions have them
    std::uint8_t palette = 0, start = 0, none[14] = {};
    std::uint16_t bytes[16] = {};  // of a row
    std::uint8_t rows[16] = {};
  };

  Shapes before_;
};

}  // namespace corom
