#include "kernels/cuda/operations.h"
#include "kernels/cuda/sm90/instructions.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

using namespace sm90;

constexpr int kWarpGroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpGroup;
constexpr int kConsumerWarps = kConsumers * kWarpGroup / kWarp;
constexpr int kOutputs = 128;  // of a block: 64 of each consumer

/// One step's operands, as the copy engine brings them: every part begins at a multiple of 1,024 bytes.
template <int kRows>
struct Stage {
  unsigned char weights[kF8TileBytes];
  unsigned char rows[kRows * kF8Tile];
  float scales[kRows < 32 ? 256 : kRows * 4];  // kRows of them; the rest makes the next stage begin on its boundary
};
template <int kRows>
constexpr int kStages = kRows == 16 ? 8 : 6;
template <int kRows>
struct Shared {
  Stage<kRows> stage[kStages<kRows>];
  MemoryBarrier full[kStages<kRows>], empty[kStages<kRows>];
};

/// Products of FP8 rows with FP8 weights on Hopper's tensor cores, the way DeepSeek-V3 was trained (arXiv 2412.19437,
/// section 3.3): a scale for 128 columns of a row, one for 128 x 128 weights, and FP32 sums outside the tensor cores,
/// whose own keep some 14 bits, every 128 columns.
///   shape      x [rows, cols] E4M3 in tiles with scales (quantize_f8), weights [outputs, cols] E4M3 in tiles with
///   block
///              scales of 128 x 128 -> [rows, outputs] FP32; of one matrix, one for each head, or one for each expert
///   grid       (tiles of 16 or 64 rows, 128 outputs); one warp group has the copy engine bring a 16 KB tile of weights
///   and
///              the rows' tile for each step of 128 columns, six or eight steps ahead; two multiply 64 outputs each,
///              the weights as the operand of 64 rows (so few tokens still fill it)
///   order      ascending columns, whatever the tile: a row's result does not depend on its neighbours
///   traffic    weights once for 16 or 64 rows, 16 KB at a time in one piece; rows once for 128 outputs
///   limit      to some 200 rows of a matrix memory: R1's experts of a layer on one of 8 GPUs (1.41 GB) 294 us on H200;
///              beyond, 1,979 TFLOP/s of the tensor cores: 972 us for gate and up of 32,768 rows
template <int kRows>
__global__ void __launch_bounds__(kThreads, 1) linear_f8_kernel(LinearCall call, F8Rows x) {
  auto& s = *reinterpret_cast<Shared<kRows>*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), group = thread / kWarpGroup, lane = thread % kWarp;
  const Tile tile = tile_of_block(call);
  const Weights& w = call.weights[tile.group];
  const std::int64_t first = std::int64_t{blockIdx.y} * kOutputs;
  if (first >= w.rows) return;  // the whole block
  const int steps = static_cast<int>(w.stride / kF8Tile);

  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < kStages<kRows>; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 0) {
    give_registers_up<40>();
    if (thread != 0) return;
    const std::byte* weights = w.data + std::int64_t{blockIdx.y} * steps * kF8TileBytes;
    const std::int64_t rows = std::int64_t{blockIdx.x} * x.steps;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int i = step % kStages<kRows>, round = step / kStages<kRows>;
      if (round > 0) barrier_wait(&s.empty[i], static_cast<unsigned>(round - 1) % 2);
      Stage<kRows>& to = s.stage[i];
      barrier_arrive_expecting(&s.full[i], kF8TileBytes + kRows * kF8Tile + kRows * 4);
      copy_bulk(to.weights, weights + step * kF8TileBytes, kF8TileBytes, &s.full[i]);
      copy_bulk(to.rows, x.value + (rows + step) * kRows * kF8Tile, kRows * kF8Tile, &s.full[i]);
      copy_bulk(to.scales, x.scale + (rows + step) * kRows, kRows * 4, &s.full[i]);
    }
    return;
  }

  take_registers<232>();
  const int mine = (group - 1) * 64;  // this warp group's outputs of the block's
  const float* weight_scales = w.scales == nullptr ? nullptr : w.scales + first / kF8Tile * w.scale_cols;
  float sum[kRows / 2] = {}, part[kRows / 2];
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int i = step % kStages<kRows>;
    barrier_wait(&s.full[i], static_cast<unsigned>(step / kStages<kRows>) % 2);
    const Stage<kRows>& from = s.stage[i];
    const std::uint64_t a = swizzled_operand(from.weights + mine * kF8Tile), b = swizzled_operand(from.rows);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kF8Tile / 32; ++k) wgmma_f8<kRows>(part, a + k * 2, b + k * 2, k > 0);  // 32 bytes on
    wgmma_commit();
    const float scale = weight_scales == nullptr ? 1.0f : weight_scales[step];
    wgmma_wait<0>();
#pragma unroll
    for (int v = 0; v < kRows / 2; ++v)
      sum[v] = fmaf(part[v], scale * from.scales[2 * (lane % 4) + v % 2 + 8 * (v / 4)], sum[v]);
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.empty[i]);
  }

  const std::int64_t output0 = first + mine + thread % kWarpGroup / kWarp * 16 + lane / 4;
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v) {
    const std::int64_t output = output0 + 8 * (v / 2 % 2);
    const int row = 2 * (lane % 4) + v % 2 + 8 * (v / 4);
    if (row >= tile.count || output >= w.rows) continue;
    call.out[(tile.first + row) * call.out_stride + tile.group * call.out_step + output] =
        sum[v] + (call.bias == nullptr ? 0.0f : call.bias[output]);
  }
}

template <int kRows>
void launch_rows(const LinearCall& call, const F8Rows& x, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kOutputs)));
  launch_with_shared("linear_f8", linear_f8_kernel<kRows>, grid, kThreads, sizeof(Shared<kRows>), stream, call, x);
}

}  // namespace

bool linear_f8_takes(const Weights& w) {
  const bool whole = w.scales == nullptr || (w.block_rows == kF8Tile && w.block_cols == kF8Tile);
  return w.form == WeightForm::f8 && whole;
}

void linear_f8(const LinearCall& call, const F8Rows& x, cudaStream_t stream) {
  if (call.tile_rows == kMmaFewRows)
    launch_rows<kMmaFewRows>(call, x, stream);
  else
    launch_rows<kMmaManyRows>(call, x, stream);
}

}  // namespace shoal::cuda
