#pragma once
#include "kernels/cuda/convert.h"
#include "kernels/cuda/operations.h"

// Activations as products take them, four neighbouring columns a lane: so whatever computes rows (a norm, SwiGLU) can
// leave them rounded, with the bits that rounding them afterwards would give.
namespace shoal::cuda {

__device__ __forceinline__ float silu_times(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

/// The largest magnitude of kLanes neighbouring lanes' columns, and whether all are finite. All lanes take part.
template <int kLanes>
__device__ __forceinline__ bool largest_of(const float (&x)[4], float& largest) {
  bool finite = true;
  largest = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    largest = fmaxf(largest, fabsf(x[i]));
    finite = finite && is_finite(x[i]);
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
  const unsigned others = __ballot_sync(kAllLanes, !finite);
  const unsigned mine = kLanes == kWarp ? kAllLanes : ((1u << kLanes) - 1) << (threadIdx.x % kWarp / kLanes * kLanes);
  return (others & mine) == 0;
}

/// 128 columns of a warp to E4M3 with one scale: the largest becomes 448, nearest even; a NaN or infinity makes the
/// scale NaN.
struct FourF8 {
  unsigned codes;
  float scale;
};
__device__ __forceinline__ FourF8 round_f8(const float (&x)[4]) {
  float largest;
  const bool finite = largest_of<kWarp>(x, largest);
  FourF8 r{0, finite ? largest / 448.0f : __uint_as_float(0x7fc00000u)};
#pragma unroll
  for (int i = 0; i < 4; ++i) r.codes |= (r.scale > 0 ? narrow_f8(x[i] / r.scale) : 0u) << (8 * i);
  return r;
}
/// Where a row of a tile has its columns of step `step`.
__device__ __forceinline__ void store_f8(const F8Rows& out, std::int64_t tile, int step, int tile_rows, int row,
                                         const FourF8& x, int lane) {
  const std::int64_t at = (tile * out.steps + step) * tile_rows;
  *reinterpret_cast<unsigned*>(out.value + at * kF8Tile + f8_offset(row, lane * 4, 1)) = x.codes;
  if (lane == 0) out.scale[at + row] = x.scale;
}

/// 32 columns of eight lanes to bytes with one scale: nearest even of x * (127 / largest), as on the CPU; a NaN or
/// infinity spreads over its group.
__device__ __forceinline__ void store_bytes(const ByteRows& out, std::int64_t at, const float (&x)[4], bool there,
                                            int lane) {
  float largest;
  const bool finite = largest_of<8>(x, largest);
  unsigned codes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float unit = largest > 0 && finite ? rintf(__fmul_rn(x[i], __fdiv_rn(127.0f, largest))) : 0.0f;
    codes |= (static_cast<unsigned>(static_cast<int>(unit)) & 0xffu) << (8 * i);
  }
  if (!there) return;
  *reinterpret_cast<unsigned*>(out.value + at) = codes;
  if (lane % 8 == 0) out.scale[at / 32] = finite ? largest / 127.0f : __uint_as_float(0x7fc00000u);
}

__device__ __forceinline__ void store_halves(std::uint16_t* to, const float (&x)[4]) {
  uint2 pairs;
  pairs.x = narrow_bf16(x[0]) | narrow_bf16(x[1]) << 16;
  pairs.y = narrow_bf16(x[2]) | narrow_bf16(x[3]) << 16;
  *reinterpret_cast<uint2*>(to) = pairs;
}

}  // namespace shoal::cuda
