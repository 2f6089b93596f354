#include "kernels/cuda/rounding.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kGroup = kF8Tile;  // columns that share a scale

/// Rows to E4M3, a scale for 128 columns, gathered into the tiles of a product and laid out as linear_f8 reads them:
/// tile t's step k is tile_rows rows of 128 bytes, swizzled, and as many scales. Rows that a tile lacks, and columns
/// behind the last, become zeros.
///   shape      x [rows, cols] FP32 (or silu(x) * up) -> value [tiles, steps, tile_rows, 128] and
///              scale [tiles, steps, tile_rows]
///   precision  largest of 128 becomes 448, nearest even; a NaN or infinity makes its 128 columns' scale NaN
///   grid       (tiles, steps); a warp takes a row at a time, each lane four columns
///   traffic    4 bytes read, 1.03 written per element of a whole tile
///   limit      memory: 128 tokens of 7168 columns 4.6 MB, 1 us on H200
__global__ void __launch_bounds__(kThreads) quantize_f8_kernel(LinearCall call, F8Rows out) {
  follow_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const std::int64_t cols = call.weights[tile.group].cols, first = std::int64_t{blockIdx.y} * kGroup;
#pragma unroll 1
  for (int r = warp; r < call.tile_rows; r += kWarps) {
    const bool there = r < tile.count;
    const std::int64_t row = there ? source_row(call, tile.first + r) : 0;
    const float* x = call.x + row * call.x_stride + tile.group * call.x_step;
    const float* up = call.up == nullptr ? nullptr : call.up + row * call.up_stride;
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t col = first + lane * 4 + i;
      value[i] = there && col < cols ? x[col] : 0.0f;
      if (up != nullptr && there && col < cols) value[i] = silu_times(value[i], up[col]);
    }
    store_f8(out, blockIdx.x, static_cast<int>(blockIdx.y), call.tile_rows, r, round_f8(value), lane);
  }
}

}  // namespace

void quantize_f8(const LinearCall& call, const F8Rows& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles), static_cast<unsigned>(out.steps));
  launch("quantize_f8", quantize_f8_kernel, grid, kThreads, stream, call, out);
}

}  // namespace shoal::cuda
