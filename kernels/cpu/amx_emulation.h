#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/amx_shape.h"

/// The tile instructions of amx_tile.h as plain loops with the semantics of Intel's manual (SDM volume 2, TDPBF16PS,
/// TDPBSUD), so that the kernels over them are tested on machines without AMX.
namespace shoal::cpu {
namespace {

struct EmulatedTiles {
  static inline TileShape shape_of[8];
  static inline std::uint8_t data[8][16][64];
  static inline bool configured = false;

  static void configure(const TileShape (&shape)[8]) {
    std::memcpy(shape_of, shape, sizeof shape_of);
    std::memset(data, 0, sizeof data);
    configured = true;
  }
  static void release() { configured = false; }
  template <int kTile>
  static void zero() {
    std::memset(data[kTile], 0, sizeof data[kTile]);
  }
  template <int kTile>
  static void load(const void* p, std::int64_t stride_bytes) {
    zero<kTile>();
    for (int r = 0; r < shape_of[kTile].rows; ++r) {
      std::memcpy(data[kTile][r], static_cast<const std::byte*>(p) + r * stride_bytes, shape_of[kTile].row_bytes);
    }
  }
  template <int kTile>
  static void store(void* p, std::int64_t stride_bytes) {
    for (int r = 0; r < shape_of[kTile].rows; ++r) {
      std::memcpy(static_cast<std::byte*>(p) + r * stride_bytes, data[kTile][r], shape_of[kTile].row_bytes);
    }
  }

  static float flush(float f) { return std::fpclassify(f) == FP_SUBNORMAL ? std::copysign(0.0f, f) : f; }
  static float bf16_at(const std::uint8_t* row, int i) {
    std::uint16_t bits;
    std::memcpy(&bits, row + 2 * i, 2);
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float f;
    std::memcpy(&f, &wide, 4);
    return flush(f);
  }

  /// Products of even and of odd k are summed apart, each by fused multiplication, and joined at the end; subnormal
  /// operands and results count as zero.
  template <int kSum, int kA, int kB>
  static void multiply_bf16() {
    for (int m = 0; m < shape_of[kSum].rows; ++m) {
      for (int n = 0; n < shape_of[kSum].row_bytes / 4; ++n) {
        float even = 0, odd = 0, sum;
        for (int k = 0; k < shape_of[kA].row_bytes / 4; ++k) {
          even = flush(std::fma(bf16_at(data[kA][m], 2 * k), bf16_at(data[kB][k], 2 * n), even));
          odd = flush(std::fma(bf16_at(data[kA][m], 2 * k + 1), bf16_at(data[kB][k], 2 * n + 1), odd));
        }
        std::memcpy(&sum, data[kSum][m] + 4 * n, 4);
        sum = flush(flush(sum) + flush(even + odd));
        std::memcpy(data[kSum][m] + 4 * n, &sum, 4);
      }
    }
  }

  /// Signed bytes of kA times unsigned ones of kB.
  template <int kSum, int kA, int kB>
  static void multiply_bytes() {
    for (int m = 0; m < shape_of[kSum].rows; ++m) {
      for (int n = 0; n < shape_of[kSum].row_bytes / 4; ++n) {
        std::int32_t sum;
        std::memcpy(&sum, data[kSum][m] + 4 * n, 4);
        for (int k = 0; k < shape_of[kA].row_bytes / 4; ++k)
          for (int i = 0; i < 4; ++i)
            sum += static_cast<std::int8_t>(data[kA][m][4 * k + i]) * std::int32_t{data[kB][k][4 * n + i]};
        std::memcpy(data[kSum][m] + 4 * n, &sum, 4);
      }
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
