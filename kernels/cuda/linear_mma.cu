#include "kernels/cuda/mma.h"
#include "kernels/cuda/rounding.h"
#include "kernels/cuda/tile.h"
#include "kernels/cuda/weight_row.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kOutputs = 64;              // of a block
constexpr int kDepth = kMmaScaleColumns;  // columns of a step
constexpr int kPad = 16;                  // bytes between rows in shared memory, so that fragments hit all banks
constexpr int kCopy = 16;                 // bytes

/// How the four warps share a tile of kRows by 64 outputs.
template <int kRows>
struct Shape {
  static constexpr int kWarpsDown = kRows == 16 ? 1 : 2, kWarpsAcross = kWarps / kWarpsDown;
  static constexpr int kBlocksDown = kRows / 16 / kWarpsDown;        // 16 rows each, of a warp
  static constexpr int kBlocksAcross = kOutputs / 8 / kWarpsAcross;  // 8 outputs each
  static constexpr int kStages = kRows == 16 ? 4 : 2;
};

/// Two neighbouring weights as BF16, exactly.
template <WeightForm kForm>
__device__ __forceinline__ unsigned weight_pair(const std::byte* row, int col) {
  if constexpr (kForm == WeightForm::bf16) {
    return *reinterpret_cast<const unsigned*>(row + col * 2);
  } else {
    const unsigned bytes = *reinterpret_cast<const std::uint16_t*>(row + col);
    return __float_as_uint(widen_f8(bytes & 0xffu)) >> 16 | (__float_as_uint(widen_f8(bytes >> 8)) & 0xffff0000u);
  }
}

/// Products on the tensor cores of every GPU from sm_80 on: activations rounded to BF16, BF16 weights or E4M3 ones,
/// which BF16 holds exactly.
///   shape      x [rows, cols] BF16 (padded to whole 16 bytes), weights [outputs, cols] -> [rows, outputs] FP32; of one
///              matrix, one for each head, or one for each expert
///   precision  BF16 products, FP32 sums; E4M3 sums are scaled every 64 columns, so block scales of whole 64s are exact
///   grid       (tiles of 16 or 64 rows, 64 outputs); four warps; columns in steps of 64, two or four under way
///              (cp.async)
///   order      ascending columns in one sum, whatever the tile: a row's result does not depend on its neighbours
///   traffic    weights once for 16 or 64 rows, activations once for 64 outputs
///   limit      16 rows: memory, R1's experts of a layer on one of 8 GPUs (E4M3, 1.41 GB) 294 us on H200; 64: the
///              conversion of E4M3 in registers, then the L2 traffic of small tiles, well short of the tensor cores
template <WeightForm kForm, int kRows>
__global__ void __launch_bounds__(kThreads) linear_mma_kernel(LinearCall call, HalfRows x) {
  follow_previous_kernels();
  using S = Shape<kRows>;
  constexpr int kWeightBytes = kForm == WeightForm::bf16 ? 2 : 1;
  constexpr int kXRow = kDepth * 2 + kPad, kWRow = kDepth * kWeightBytes + kPad;
  struct Shared {
    alignas(16) std::byte x[S::kStages][kRows][kXRow];
    alignas(16) std::byte w[S::kStages][kOutputs][kWRow];
  };
  Shared& s = shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const Weights& w = call.weights[tile.group];
  const std::int64_t first = std::int64_t{blockIdx.y} * kOutputs;
  if (first >= w.rows) return;  // the whole block

  // What lies beyond the matrix, its rows or the tile comes as zeros; the address is then one that exists.
  const auto fetch = [&](std::int64_t step) {
    const int stage = static_cast<int>(step % S::kStages);
    for (int i = thread; i < kRows * kDepth * 2 / kCopy; i += kThreads) {
      const int row = i / (kDepth * 2 / kCopy), at = i % (kDepth * 2 / kCopy) * kCopy;
      const std::int64_t col = step * kDepth + at / 2;
      const bool there = row < tile.count && col < w.cols;
      const std::int64_t from =
          there ? source_row(call, tile.first + row) * x.stride + tile.group * call.x_step + col : 0;
      const int valid = there ? min(kCopy, static_cast<int>(w.cols - col) * 2) : 0;  // not what is another head's
      copy_async_16(s.x[stage][row] + at, x.value + from, valid);
    }
    for (int i = thread; i < kOutputs * kDepth * kWeightBytes / kCopy; i += kThreads) {
      const int row = i / (kDepth * kWeightBytes / kCopy), at = i % (kDepth * kWeightBytes / kCopy) * kCopy;
      const std::int64_t col = step * kDepth + at / kWeightBytes;
      const bool there = first + row < w.rows && col < w.stride;
      const std::int64_t from = !there                    ? 0
                                : kForm == WeightForm::f8 ? f8_offset(first + row, col, w.stride / kF8Tile)
                                                          : ((first + row) * w.stride + col) * kWeightBytes;
      copy_async_16(s.w[stage][row] + at, w.data + from, there ? kCopy : 0);
    }
  };

  const std::int64_t steps = ceil_div<std::int64_t>(w.cols, kDepth);
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (i < steps) fetch(i);
    commit_copies();
  }
  const int g = lane / 4, t = lane % 4;
  const int row0 = warp / S::kWarpsAcross * S::kBlocksDown * 16,
            output0 = warp % S::kWarpsAcross * S::kBlocksAcross * 8;
  float sum[S::kBlocksDown][S::kBlocksAcross][4] = {};
  for (std::int64_t step = 0; step < steps; ++step) {
    wait_copies<S::kStages - 2>();
    __syncthreads();  // this step is there for all, and all have done with the stage that is filled next
    if (step + S::kStages - 1 < steps) fetch(step + S::kStages - 1);
    commit_copies();

    const auto stage = static_cast<int>(step % S::kStages);
    float part[S::kBlocksDown][S::kBlocksAcross][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      unsigned a[S::kBlocksDown][4], b[S::kBlocksAcross][2];
#pragma unroll
      for (int m = 0; m < S::kBlocksDown; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = *reinterpret_cast<const unsigned*>(s.x[stage][row0 + m * 16 + g + 8 * (i % 2)] +
                                                       (k + 2 * t + 8 * (i / 2)) * 2);
#pragma unroll
      for (int n = 0; n < S::kBlocksAcross; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) b[n][i] = weight_pair<kForm>(s.w[stage][output0 + n * 8 + g], k + 2 * t + 8 * i);
#pragma unroll
      for (int m = 0; m < S::kBlocksDown; ++m)
#pragma unroll
        for (int n = 0; n < S::kBlocksAcross; ++n)
          mma_bf16(kForm == WeightForm::f8 ? part[m][n] : sum[m][n], a[m], b[n]);
    }
    if constexpr (kForm == WeightForm::f8) {
#pragma unroll
      for (int n = 0; n < S::kBlocksAcross; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::int64_t output = first + output0 + n * 8 + 2 * t + i;
          const float scale = output < w.rows ? scale_of(w, output, step * kDepth) : 0.0f;
#pragma unroll
          for (int m = 0; m < S::kBlocksDown; ++m) {
            sum[m][n][i] = fmaf(scale, part[m][n][i], sum[m][n][i]);
            sum[m][n][i + 2] = fmaf(scale, part[m][n][i + 2], sum[m][n][i + 2]);
          }
        }
    }
  }

#pragma unroll
  for (int m = 0; m < S::kBlocksDown; ++m)
#pragma unroll
    for (int n = 0; n < S::kBlocksAcross; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row0 + m * 16 + g + 8 * (i / 2);
        const std::int64_t output = first + output0 + n * 8 + 2 * t + i % 2;
        if (row >= tile.count || output >= w.rows) continue;
        call.out[(tile.first + row) * call.out_stride + tile.group * call.out_step + output] =
            sum[m][n][i] + (call.bias == nullptr ? 0.0f : call.bias[output]);
      }
}

/// FP32 rows (or silu(x) * up) to BF16 ones, zeros up to the stride. A thread rounds one column; 6 bytes an element, 10
/// with up.
constexpr int kRoundThreads = 256;
__global__ void __launch_bounds__(kRoundThreads)
    round_rows_kernel(const float* x, std::int64_t x_stride, const float* up, std::int64_t up_stride, std::int64_t cols,
                      const std::int32_t* count, HalfRows out) {
  follow_previous_kernels();
  if (count != nullptr && static_cast<int>(blockIdx.x) >= *count) return;
  const std::int64_t c = std::int64_t{blockIdx.y} * kRoundThreads + threadIdx.x;
  if (c >= out.stride) return;
  float value = c < cols ? x[blockIdx.x * x_stride + c] : 0.0f;
  if (up != nullptr && c < cols) value = silu_times(value, up[blockIdx.x * up_stride + c]);
  out.value[blockIdx.x * out.stride + c] = static_cast<std::uint16_t>(narrow_bf16(value));
}

template <WeightForm kForm>
void launch_form(const LinearCall& call, const HalfRows& x, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kOutputs)));
  const auto run = [&](auto kernel) { launch("linear_mma", kernel, grid, kThreads, stream, call, x); };
  if (call.tile_rows == 16)
    run(linear_mma_kernel<kForm, 16>);
  else
    run(linear_mma_kernel<kForm, 64>);
}

}  // namespace

void round_rows(Rows<const float> x, Rows<const float> up, const std::int32_t* count, const HalfRows& out,
                cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows),
                  static_cast<unsigned>(ceil_div<std::int64_t>(out.stride, kRoundThreads)));
  launch("round_rows", round_rows_kernel, grid, kRoundThreads, stream, x.data, x.stride,
         up.cols > 0 ? up.data : nullptr, up.stride, x.cols, count, out);
}

bool linear_mma_takes(const Weights& w) {
  if (w.form == WeightForm::bf16) return true;
  return w.form == WeightForm::f8 && (w.scales == nullptr || w.block_cols % kDepth == 0 || w.block_cols >= w.cols);
}

void linear_mma(const LinearCall& call, WeightForm form, const HalfRows& x, cudaStream_t stream) {
  if (form == WeightForm::bf16)
    launch_form<WeightForm::bf16>(call, x, stream);
  else
    launch_form<WeightForm::f8>(call, x, stream);
}

}  // namespace shoal::cuda
