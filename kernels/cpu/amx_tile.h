#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/amx_shape.h"

/// The tile instructions of AMX behind names that amx_emulation.h shares. Written as assembly because the compiler's
/// own wrappers take a register's number as text, not as a template's parameter. All in an unnamed namespace: see
/// kernel_table.h.
namespace shoal::cpu {
namespace {

struct HardwareTiles {
  static void configure(const TileShape (&shape)[8]) {
    TileConfig config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = shape[i].row_bytes;
      config.rows[i] = shape[i].rows;
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  static void release() { asm volatile("tilerelease" : : : "memory"); }

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  static void load(const void* p, std::int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride_bytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* p, std::int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride_bytes), "i"(kTile) : "memory");
  }
  /// sum [m][n] FP32 += a [m][2k] BF16 times b [k][2n] BF16, whose rows hold pairs of neighbouring k.
  template <int kSum, int kA, int kB>
  static void multiply_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  }

  /// sum [m][n] INT32 += a [m][4k] signed bytes times b [k][4n] unsigned ones, whose rows hold fours of neighbouring k.
  template <int kSum, int kA, int kB>
  static void multiply_bytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
  }
};

}  // namespace
}  // namespace shoal::cpu
