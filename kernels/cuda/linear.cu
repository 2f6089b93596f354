#include "kernels/cuda/tile.h"
#include "kernels/cuda/weight_row.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kOutputs = 4;  // of a warp
constexpr int kColumns = kWarp * kVector;

__device__ __forceinline__ void load_activations(const float* x, std::int64_t col, std::int64_t cols, bool bf16,
                                                 float (&out)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float f = col + i < cols ? x[col + i] : 0.0f;
    out[i] = bf16 ? round_bf16(f) : f;
  }
}

/// Products of rows with weights outside the tensor cores: right for every type and shape, and the measure for those
/// that are faster.
///   shape      x [rows, cols] FP32, weights [outputs, cols] F32, F16, BF16 or E4M3 with block scales of any size ->
///              [rows, outputs] FP32; of one matrix, one for each head, or one for each expert
///   precision  FP32 products and sums; activations as they are or rounded to BF16 first
///   grid       (tiles of at most 8 rows, 16 outputs); a warp computes 4 outputs for all rows of the tile, each lane
///              eight columns in 256
///   order      lane by lane, then over the warp: the same for a row whatever else is in its tile
///   traffic    weights once for 8 rows; rows come from L1 and L2
///   limit      to 8 rows memory, one pass over the weights: R1's experts of a layer on one of 8 GPUs (1.41 GB) 294 us
///              on H200; beyond, arithmetic at 67 TFLOP/s
template <WeightForm kForm, int kRows>
__global__ void __launch_bounds__(kThreads, 1) linear_kernel(LinearCall call, bool bf16) {
  follow_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const Weights& w = call.weights[tile.group];
  const std::int64_t first = (std::int64_t{blockIdx.y} * kWarps + warp) * kOutputs;
  if (first >= w.rows) return;  // the whole warp

  const float* x[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    const std::int64_t i = tile.first + min(t, tile.count - 1);
    x[t] = call.x + source_row(call, i) * call.x_stride + tile.group * call.x_step;
  }
  float sum[kOutputs * kRows] = {};
#pragma unroll 1
  for (std::int64_t col = lane * kVector; col < w.cols; col += kColumns) {
    float weight[kOutputs][kVector];
#pragma unroll
    for (int r = 0; r < kOutputs; ++r)
      load_weights<kForm>(w, first + r < w.rows ? first + r : w.rows - 1, col, weight[r]);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      float activation[kVector];
      load_activations(x[t], col, w.cols, bf16, activation);
#pragma unroll
      for (int r = 0; r < kOutputs; ++r)
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[r * kRows + t] = fmaf(activation[i], weight[r][i], sum[r * kRows + t]);
    }
  }
  // Every lane, or every so manyth, ends with one of the block's results.
  constexpr int kLanesEach = kWarp / (kOutputs * kRows);
  const float total = warp_sums<kOutputs * kRows>(sum, lane);
  const int r = lane / kLanesEach / kRows, t = lane / kLanesEach % kRows;
  if (lane % kLanesEach != 0 || first + r >= w.rows || t >= tile.count) return;
  call.out[(tile.first + t) * call.out_stride + tile.group * call.out_step + first + r] =
      total + (call.bias == nullptr ? 0.0f : call.bias[first + r]);
}

template <WeightForm kForm>
void launch_form(const LinearCall& call, bool bf16, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kWarps * kOutputs)));
  const auto run = [&](auto kernel) { launch("linear", kernel, grid, kThreads, stream, call, bf16); };
  if (call.most_in_tile == 1) return run(linear_kernel<kForm, 1>);
  if (call.most_in_tile <= 4) return run(linear_kernel<kForm, 4>);
  run(linear_kernel<kForm, kTileRows>);
}

}  // namespace

void linear(const LinearCall& call, WeightForm form, bool bf16_activations, cudaStream_t stream) {
  switch (form) {
    case WeightForm::f32:
      return launch_form<WeightForm::f32>(call, false, stream);
    case WeightForm::f16:
      return launch_form<WeightForm::f16>(call, false, stream);
    case WeightForm::bf16:
      return launch_form<WeightForm::bf16>(call, bf16_activations, stream);
    case WeightForm::f8:
      return launch_form<WeightForm::f8>(call, bf16_activations, stream);
    case WeightForm::packed:
      return;  // linear_packed's
  }
}

}  // namespace shoal::cuda
