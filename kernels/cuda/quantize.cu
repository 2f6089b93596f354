#include "kernels/cuda/operations.h"
#include "kernels/cuda/rounding.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

constexpr int kColumns = 4 * kWarp;  // of a warp

/// Activations to bytes, 32 columns with one scale.
///   shape      x [rows, cols] FP32 (or silu(x) * up) -> value [rows, cols] INT8, scale [rows, cols / 32] FP32
///   precision  round to nearest even of x * (127 / largest), as on the CPU; a NaN or infinity spreads over its group
///   grid       a warp for 128 columns, a lane four of them; blocks of eight warps
///   traffic    4 bytes read (8 with up), 1.125 written per element
///   limit      memory: 128 tokens of 7168 columns 4.7 MB, 1 us on H200
__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(const float* x, std::int64_t stride, const float* up, std::int64_t up_stride,
                         std::int64_t cols, const std::int32_t* count, ByteRows out) {
  follow_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = blockIdx.x;
  if (count != nullptr && row >= *count) return;
  const std::int64_t first = (std::int64_t{blockIdx.y} * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kColumns;
  if (first >= cols) return;  // the whole warp
  const std::int64_t c = first + lane * 4;
  float value[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i] = c < cols ? x[row * stride + c + i] : 0.0f;
    if (up != nullptr && c < cols) value[i] = silu_times(value[i], up[row * up_stride + c + i]);
  }
  store_bytes(out, row * cols + c, value, c < cols, lane);
}

/// Four columns of a lane, to `row` from column c on.
__device__ __forceinline__ void store_rounded(const ByteRows& out, std::int64_t row, std::int64_t cols, std::int64_t c,
                                              const float (&x)[4], int lane) {
  store_bytes(out, row * cols + c, x, c < cols, lane);
}
__device__ __forceinline__ void store_rounded(const HalfRows& out, std::int64_t row, std::int64_t cols, std::int64_t c,
                                              const float (&x)[4], int) {
  if (c < cols) store_halves(out.value + row * out.stride + c, x);
}

/// The same for the rows of a product's tiles, each in the order that its matrix has its columns in: row i of the list
/// becomes row i. To bytes, or to BF16 (2 bytes written).
///   grid       (tiles, 1,024 columns); a warp takes 128 columns of all rows of the tile
///   traffic    as above, the reads of 4 bytes here and there: an L2 sector each, 32 bytes
template <class RoundedRows>
__global__ void __launch_bounds__(kThreads)
    quantize_in_order_kernel(LinearCall call, std::int64_t cols, RoundedRows out) {
  follow_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const std::int64_t first = (std::int64_t{blockIdx.y} * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kColumns;
  if (first >= cols) return;  // the whole warp
  const std::int64_t c = first + lane * 4;
  const std::int32_t* order = call.weights[tile.group].order;
  std::int64_t from[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) from[i] = c >= cols ? 0 : order == nullptr ? c + i : order[c + i];
  for (int r = 0; r < tile.count; ++r) {
    const std::int64_t row = source_row(call, tile.first + r);
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      value[i] = call.x[row * call.x_stride + from[i]];
      if (call.up != nullptr) value[i] = silu_times(value[i], call.up[row * call.up_stride + from[i]]);
    }
    store_rounded(out, tile.first + r, cols, c, value, lane);
  }
}

template <class RoundedRows>
void launch_in_order(const char* name, const LinearCall& call, std::int64_t cols, const RoundedRows& out,
                     cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(cols, kWarps * kColumns)));
  launch(name, quantize_in_order_kernel<RoundedRows>, grid, kThreads, stream, call, cols, out);
}

}  // namespace

void quantize_rows(Rows<const float> x, Rows<const float> up, const std::int32_t* count, const ByteRows& out,
                   cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows),
                  static_cast<unsigned>(ceil_div<std::int64_t>(x.cols, kWarps * kColumns)));
  launch("quantize_rows", quantize_rows_kernel, grid, kThreads, stream, x.data, x.stride,
         up.cols > 0 ? up.data : nullptr, up.stride, x.cols, count, out);
}

void quantize_in_order(const LinearCall& call, std::int64_t cols, const ByteRows& out, cudaStream_t stream) {
  launch_in_order("quantize_in_order", call, cols, out, stream);
}
void round_in_order(const LinearCall& call, std::int64_t cols, const HalfRows& out, cudaStream_t stream) {
  launch_in_order("round_in_order", call, cols, out, stream);
}

}  // namespace shoal::cuda
