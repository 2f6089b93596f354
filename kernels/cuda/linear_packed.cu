#include "kernels/cuda/integer_dot.h"
#include "kernels/cuda/packed_row.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;

/// Products of quantized weights (every GGUF type; integers of safetensors that became one) with activations in bytes.
///   shape      x [rows, cols] INT8 with a scale for 32 columns, weights [outputs, cols] in packed panels -> FP32
///   precision  exact integer dot products of a group (16 or 32 columns), FP32 scales and sums
///   grid       (tiles of at most 8 rows, panels of 16 outputs); a block's four warps share a panel's records in turn,
///              half a warp holds the panel's rows, and the warps' sums are added in order
///   traffic    packed weights once for 8 rows: 0.23 (IQ1_S) to 1.06 (Q8_0) bytes a weight
///   limit      to 8 rows memory: R1's experts of a layer on one of 8 GPUs as Q4_K 0.81 GB, 170 us on H200;
///              below 3 bits the unpacking
template <int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    linear_packed_kernel(LinearCall call, ByteRows bytes, std::int64_t x_cols) {
  follow_previous_kernels();
  struct Shared {
    float sum[kWarps][kRows][kPanelRows];
  };
  Shared& s = shared<Shared>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row = lane % kPanelRows, half = lane / kPanelRows;
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const Weights& w = call.weights[tile.group];
  const PackedLayout& f = w.packed;
  const std::int64_t first = std::int64_t{blockIdx.y} * kPanelRows;
  if (first >= w.rows) return;  // the whole block

  const std::int8_t* x[kRows];
  const float* x_scale[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    const std::int64_t i = tile.first + min(t, tile.count - 1);
    const std::int64_t at = source_row(call, i) * x_cols + tile.group * call.x_step;
    x[t] = bytes.value + at;
    x_scale[t] = bytes.scale + at / kStepCols;
  }
  float sum[kRows] = {};
  const int records = static_cast<int>(w.cols) / f.record;
  const std::byte* panel = w.data + std::int64_t{blockIdx.y} * records * f.record_bytes;
#pragma unroll 1
  for (int r = warp; r < records; r += kWarps) {
    const std::byte* record = panel + std::int64_t{r} * f.record_bytes;
    const RowHead head = head_of(f, record, row);
#pragma unroll 1
    for (int step = 0; step < f.record / kStepCols; ++step) {
      const std::byte* at = record + f.head_bytes + step * f.step_bytes;
      const int col = r * f.record + step * kStepCols;
      // This lane's quads: two in each half of the step, which are two groups or one.
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int quad = part * kQuads / 2 + half;
        const GroupScale g = scale_of_group(f, head, record, at, step, f.group == kStepCols ? 0 : part, row);
        const unsigned one = quad_of(f, record, step, quad, row);
        const unsigned two = quad_of(f, record, step, quad + 2, row);
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          const unsigned a = *reinterpret_cast<const unsigned*>(x[t] + col + quad * 4);
          const unsigned b = *reinterpret_cast<const unsigned*>(x[t] + col + quad * 4 + 8);
          const int product = dot_unsigned_signed(two, b, dot_unsigned_signed(one, a, 0));
          const int total = dot_unsigned_signed(0x01010101u, b, dot_unsigned_signed(0x01010101u, a, 0));
          sum[t] += x_scale[t][col / kStepCols] *
                    (g.scale * static_cast<float>(product) - g.minimum * static_cast<float>(total));
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    const float both = sum[t] + __shfl_xor_sync(kAllLanes, sum[t], kPanelRows);
    if (half == 0) s.sum[warp][t][row] = both;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPanelRows; i += kThreads) {
    const int t = i / kPanelRows, output = i % kPanelRows;
    if (t >= tile.count || first + output >= w.rows) continue;
    float total = 0;
#pragma unroll
    for (int k = 0; k < kWarps; ++k) total += s.sum[k][t][output];
    call.out[(tile.first + t) * call.out_stride + tile.group * call.out_step + first + output] =
        total + (call.bias == nullptr ? 0.0f : call.bias[first + output]);
  }
}

}  // namespace

void linear_packed(const LinearCall& call, const ByteRows& x, std::int64_t x_cols, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kPanelRows)));
  const auto run = [&](auto kernel) { launch("linear_packed", kernel, grid, kThreads, stream, call, x, x_cols); };
  if (call.most_in_tile == 1) return run(linear_packed_kernel<1>);
  if (call.most_in_tile <= 4) return run(linear_packed_kernel<4>);
  run(linear_packed_kernel<kTileRows>);
}

}  // namespace shoal::cuda
