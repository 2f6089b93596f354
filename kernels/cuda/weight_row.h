#pragma once
#include "kernels/cuda/convert.h"

// Reading rows of weights, eight columns (16 bytes of a 16-bit type) at a time.
namespace shoal::cuda {

constexpr int kVector = 8;

/// What element [row][col] of an F8 matrix is multiplied with.
__device__ __forceinline__ float scale_of(const Weights& w, std::int64_t row, std::int64_t col) {
  if (w.scales == nullptr) return 1.0f;
  const unsigned down = static_cast<unsigned>(row) / static_cast<unsigned>(w.block_rows);
  const unsigned across = static_cast<unsigned>(col) / static_cast<unsigned>(w.block_cols);
  return w.scales[std::int64_t{down} * w.scale_cols + across];
}

/// Columns col .. col + 7 of a row, as floats; col is a multiple of 8 below w.stride. Beyond the last column: zeros.
template <WeightForm kForm>
__device__ __forceinline__ void load_weights(const Weights& w, std::int64_t row, std::int64_t col,
                                             float (&out)[kVector]) {
  const std::int64_t at = kForm == WeightForm::f8 ? f8_offset(row, col, w.stride / kF8Tile) : row * w.stride + col;
  if constexpr (kForm == WeightForm::f32) {
    const auto* from = reinterpret_cast<const float4*>(w.data + at * 4);
    const float4 low = from[0], high = from[1];
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  } else if constexpr (kForm == WeightForm::f8) {
    const uint2 bytes = *reinterpret_cast<const uint2*>(w.data + at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = widen_f8(bytes.x >> (8 * i) & 0xffu);
      out[i + 4] = widen_f8(bytes.y >> (8 * i) & 0xffu);
    }
    if (w.scales == nullptr) return;
    if (w.block_cols % kVector == 0) {
      const float scale = col < w.cols ? scale_of(w, row, col) : 0.0f;
#pragma unroll
      for (float& f : out) f *= scale;
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) out[i] *= col + i < w.cols ? scale_of(w, row, col + i) : 0.0f;
    }
  } else {
    const uint4 halves = *reinterpret_cast<const uint4*>(w.data + at * 2);
    const unsigned pair[4] = {halves.x, halves.y, halves.z, halves.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned low = pair[i] & 0xffffu, high = pair[i] >> 16;
      out[2 * i] = kForm == WeightForm::bf16 ? widen_bf16(low) : widen_f16(low);
      out[2 * i + 1] = kForm == WeightForm::bf16 ? widen_bf16(high) : widen_f16(high);
    }
  }
}

}  // namespace shoal::cuda
