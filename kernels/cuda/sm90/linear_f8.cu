#include <algorithm>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/rounding.h"
#include "kernels/cuda/sm90/instructions.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

using namespace sm90;

constexpr int kWarpGroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpGroup;
constexpr int kConsumerWarps = kConsumers * kWarpGroup / kWarp;
constexpr int kOutputs = 128;  // of a block: 64 of each consumer

/// One step's operands, as the copy engine brings them: every part begins at a multiple of 1,024 bytes. kGated: of two
/// matrices.
template <int kRows, bool kGated>
struct Stage {
  unsigned char weights[kGated ? 2 : 1][kF8TileBytes];
  unsigned char rows[kRows * kF8Tile];
  float scales[kRows < 32 ? 256 : kRows * 4];  // kRows of them; the rest makes the next stage begin on its boundary
};
template <int kRows, bool kGated>
constexpr int kStages = kGated ? (kRows == 16 ? 6 : 5) : (kRows == 16 ? 8 : 6);
template <int kRows, bool kGated>
struct Shared {
  Stage<kRows, kGated> stage[kStages<kRows, kGated>];
  // What becomes of the results of a gated product.
  unsigned char codes[kGated ? kRows * kF8Tile : 16];
  float largest[kGated ? kConsumerWarps : 1][kRows];
  unsigned arrived;  // blocks of other pieces before this one
  MemoryBarrier full[kStages<kRows, kGated>], empty[kStages<kRows, kGated>];
};
static_assert(sizeof(Shared<16, false>) <= 227 << 10 && sizeof(Shared<64, false>) <= 227 << 10 &&
              sizeof(Shared<16, true>) <= 227 << 10 && sizeof(Shared<64, true>) <= 227 << 10);

/// silu(gate) * up of 128 outputs, of which each warp group holds 64, to E4M3 with one scale a row, laid out as the
/// next product reads them: `to` [kRows, 128] and `scale` [kRows] are this block's own.
template <int kRows>
__device__ __forceinline__ void store_gated(Shared<kRows, true>& s, const float (&gate)[kRows / 2],
                                            const float (&up)[kRows / 2], std::byte* to, float* scale) {
  const int consumer = static_cast<int>(threadIdx.x) - kWarpGroup, warp = consumer / kWarp, lane = consumer % kWarp;
  float value[kRows / 2];
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v) value[v] = silu_times(gate[v], up[v]);
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v) {
    if (v / 2 % 2 == 1) continue;  // v and v + 2 are outputs of one row
    // What is not finite counts as infinite.
    float most = fmaxf(is_finite(value[v]) ? fabsf(value[v]) : INFINITY,
                       is_finite(value[v + 2]) ? fabsf(value[v + 2]) : INFINITY);
#pragma unroll
    for (int distance = 4; distance < kWarp; distance *= 2)
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
    if (lane < 4) s.largest[warp][2 * lane + v % 2 + 8 * (v / 4)] = most;
  }
  named_barrier<1, kConsumers * kWarpGroup>();
  const int column0 = warp * 16 + lane / 4;  // a warp group's warps lie behind those of the first
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v) {
    const int row = 2 * (lane % 4) + v % 2 + 8 * (v / 4);
    float most = 0;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) most = fmaxf(most, s.largest[w][row]);
    const float unit = most < INFINITY ? most / 448.0f : __uint_as_float(0x7fc00000u);
    s.codes[f8_offset(row, column0 + 8 * (v / 2 % 2), 1)] =
        static_cast<unsigned char>(unit > 0 ? narrow_f8(value[v] / unit) : 0u);
    if (warp == 0 && lane < 4 && v / 2 % 2 == 0) scale[row] = unit;
  }
  named_barrier<1, kConsumers * kWarpGroup>();
  for (int i = consumer; i < kRows * kF8Tile / 16; i += kConsumers * kWarpGroup)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(s.codes)[i];
}

/// A product in pieces: this block's sums join those of the others, and whoever comes last adds all of them up. False:
/// not the last.
template <int kRows>
__device__ __forceinline__ bool add_pieces(const F8Pieces& pieces, float (&sum)[kRows / 2], unsigned& before) {
  constexpr int kAll = kConsumers * kWarpGroup;
  const int consumer = static_cast<int>(threadIdx.x) - kWarpGroup;
  const unsigned block = blockIdx.x * gridDim.y + blockIdx.y;
  float* sums = pieces.sums + std::int64_t{block} * pieces.count * (kRows / 2) * kAll + consumer;
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v)
    sums[(static_cast<int>(blockIdx.z) * (kRows / 2) + v) * std::int64_t{kAll}] = sum[v];
  __threadfence();
  named_barrier<1, kAll>();  // all of the block's are there
  if (consumer == 0) before = atomicAdd(&pieces.arrived[block], 1u);
  named_barrier<1, kAll>();
  if (before + 1 < static_cast<unsigned>(pieces.count)) return false;
  __threadfence();
  if (consumer == 0) pieces.arrived[block] = 0;
#pragma unroll
  for (int v = 0; v < kRows / 2; ++v) sum[v] = 0;
#pragma unroll 1
  for (int piece = 0; piece < pieces.count; ++piece)
#pragma unroll
    for (int v = 0; v < kRows / 2; ++v) sum[v] += __ldcg(&sums[(piece * (kRows / 2) + v) * std::int64_t{kAll}]);
  return true;
}

/// Products of FP8 rows with FP8 weights on Hopper's tensor cores, the way DeepSeek-V3 was trained (arXiv 2412.19437,
/// section 3.3): a scale for 128 columns of a row, one for 128 x 128 weights, and FP32 sums outside the tensor cores,
/// whose own keep some 14 bits, every 128 columns.
///   shape      x [rows, cols] E4M3 in tiles with scales (quantize_f8), weights [outputs, cols] E4M3 in tiles with
///              block scales of 128 x 128 -> [rows, outputs] FP32; of one matrix, one for each head, or one for each
///              expert. kGated: of gate and up at once -> silu(gate) * up [rows, outputs] E4M3 in tiles with scales,
///              which the product with down reads: neither FP32 result nor another kernel lies between
///   grid       (tiles of 16 or 64 rows, 128 outputs); one warp group has the copy engine bring a 16 KB tile of weights
///              (kGated: two) and the rows' tile for each step of 128 columns, five to eight steps ahead; two multiply
///              64 outputs each, the weights as the operand of 64 rows (so few tokens still fill it)
///              A product of all rows with one matrix that few blocks would share comes in pieces of its columns (z),
///              by which 84 blocks read R1's q_a and not 12; the block that comes last adds them
///   order      ascending columns, or in each piece and then of the pieces, whatever the tile: a row's result does not
///              depend on its neighbours
///   overlap    the first steps' weights come while the kernel before is still at work, their rows when it has ended
///   traffic    weights once for 16 or 64 rows, 16 KB at a time in one piece; rows once for 128 outputs
///   limit      to some 200 rows of a matrix memory: R1's experts of a layer on one of 8 GPUs (1.41 GB) 294 us on H200;
///              beyond, 1,979 TFLOP/s of the tensor cores: 972 us for gate and up of 32,768 rows
template <int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads, 1)
    linear_f8_kernel(LinearCall call, const Weights* ups, F8Rows x, F8Rows out) {
  let_next_kernel_begin();
  auto& s = *reinterpret_cast<Shared<kRows, kGated>*>(dynamic_shared());
  constexpr int kAhead = kStages<kRows, kGated>;
  const int thread = static_cast<int>(threadIdx.x), group = thread / kWarpGroup, lane = thread % kWarp;
  if (call.tiles_made) wait_for_previous_kernels();
  const Tile tile = tile_of_block(call);
  if (tile.count == 0) return;
  const Weights& w = call.weights[tile.group];
  const std::int64_t first = std::int64_t{blockIdx.y} * kOutputs;
  if (first >= w.rows) return wait_for_previous_kernels();  // the whole block
  const int all_steps = static_cast<int>(w.stride / kF8Tile), pieces = kGated ? 1 : call.pieces.count;
  const bool apart = !kGated && call.pieces.sums != nullptr;  // a piece to each block
  const int first_step = apart ? static_cast<int>(blockIdx.z) * all_steps / pieces : 0;
  const int steps = (apart ? (static_cast<int>(blockIdx.z) + 1) * all_steps / pieces : all_steps) - first_step;

  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      barrier_init(&s.full[i], 1);
      barrier_init(&s.empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();

  if (group == 0) {
    give_registers_up<40>();
    if (thread != 0) return;
    const std::int64_t weights_at = (std::int64_t{blockIdx.y} * all_steps + first_step) * kF8TileBytes;
    const std::int64_t rows = std::int64_t{blockIdx.x} * x.steps + first_step;
    const auto bring_weights = [&](int step) {
      const int i = step % kAhead;
      Stage<kRows, kGated>& to = s.stage[i];
      barrier_arrive_expecting(&s.full[i], (kGated ? 2 : 1) * kF8TileBytes + kRows * kF8Tile + kRows * 4);
      copy_bulk(to.weights[0], w.data + weights_at + step * kF8TileBytes, kF8TileBytes, &s.full[i]);
      if constexpr (kGated)
        copy_bulk(to.weights[1], ups[tile.group].data + weights_at + step * kF8TileBytes, kF8TileBytes, &s.full[i]);
    };
    const auto bring_rows = [&](int step) {
      const int i = step % kAhead;
      copy_bulk(s.stage[i].rows, x.value + (rows + step) * kRows * kF8Tile, kRows * kF8Tile, &s.full[i]);
      copy_bulk(s.stage[i].scales, x.scale + (rows + step) * kRows, kRows * 4, &s.full[i]);
    };
    // No kernel writes weights, so the first ones come while those before are still at work.
    const int early = min(steps, kAhead);
#pragma unroll 1
    for (int step = 0; step < early; ++step) bring_weights(step);
    wait_for_previous_kernels();
#pragma unroll 1
    for (int step = 0; step < early; ++step) bring_rows(step);
#pragma unroll 1
    for (int step = early; step < steps; ++step) {
      barrier_wait(&s.empty[step % kAhead], static_cast<unsigned>(step / kAhead - 1) % 2);
      bring_weights(step);
      bring_rows(step);
    }
    return;
  }

  take_registers<232>();
  constexpr int kMatrices = kGated ? 2 : 1;
  const int mine = (group - 1) * 64;  // this warp group's outputs of the block's
  const float* weight_scales[kMatrices];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    const Weights& of = m == 0 ? w : ups[tile.group];
    weight_scales[m] = of.scales == nullptr ? nullptr : of.scales + first / kF8Tile * of.scale_cols + first_step;
  }
  float sum[kMatrices][kRows / 2] = {}, part[kMatrices][kRows / 2];
  [[maybe_unused]] float of_pieces[kGated ? 1 : kRows / 2] = {};  // before this one
  [[maybe_unused]] int piece = 1, next_piece = apart ? steps : all_steps / pieces;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int i = step % kAhead;
    barrier_wait(&s.full[i], static_cast<unsigned>(step / kAhead) % 2);
    const Stage<kRows, kGated>& from = s.stage[i];
    const std::uint64_t b = swizzled_operand(from.rows);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      const std::uint64_t a = swizzled_operand(from.weights[m] + mine * kF8Tile);
#pragma unroll
      for (int k = 0; k < kF8Tile / 32; ++k) wgmma_f8<kRows>(part[m], a + k * 2, b + k * 2, k > 0);  // 32 bytes on
    }
    wgmma_commit();
    float scale[kMatrices];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) scale[m] = weight_scales[m] == nullptr ? 1.0f : weight_scales[m][step];
    wgmma_wait<0>();
#pragma unroll
    for (int v = 0; v < kRows / 2; ++v) {
      const float of_row = from.scales[2 * (lane % 4) + v % 2 + 8 * (v / 4)];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) sum[m][v] = fmaf(part[m][v], scale[m] * of_row, sum[m][v]);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.empty[i]);
    if constexpr (!kGated) {
      if (step + 1 == next_piece && next_piece < steps) {
#pragma unroll
        for (int v = 0; v < kRows / 2; ++v) {
          of_pieces[v] += sum[0][v];
          sum[0][v] = 0;
        }
        next_piece = ++piece * all_steps / pieces;
      }
    }
  }
  if constexpr (!kGated) {
    if (apart) {
      if (!add_pieces<kRows>(call.pieces, sum[0], s.arrived)) return;
    } else {
#pragma unroll
      for (int v = 0; v < kRows / 2; ++v) sum[0][v] = of_pieces[v] + sum[0][v];
    }
  }

  if constexpr (kGated) {
    const std::int64_t at = (std::int64_t{blockIdx.x} * out.steps + blockIdx.y) * kRows;
    store_gated<kRows>(s, sum[0], sum[1], out.value + at * kF8Tile, out.scale + at);
  } else {
    const std::int64_t output0 = first + mine + thread % kWarpGroup / kWarp * 16 + lane / 4;
#pragma unroll
    for (int v = 0; v < kRows / 2; ++v) {
      const std::int64_t output = output0 + 8 * (v / 2 % 2);
      const int row = 2 * (lane % 4) + v % 2 + 8 * (v / 4);
      if (row >= tile.count || output >= w.rows) continue;
      call.out[(tile.first + row) * call.out_stride + tile.group * call.out_step + output] =
          sum[0][v] + (call.bias == nullptr ? 0.0f : call.bias[output]);
    }
  }
}

template <int kRows, bool kGated>
void launch_rows(const LinearCall& call, const Weights* ups, const F8Rows& x, const F8Rows& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(call.n_tiles),
                  static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kOutputs)),
                  static_cast<unsigned>(call.pieces.sums == nullptr ? 1 : call.pieces.count));
  launch_with_shared("linear_f8", linear_f8_kernel<kRows, kGated>, grid, kThreads, sizeof(Shared<kRows, kGated>),
                     stream, call, ups, x, out);
}

}  // namespace

bool linear_f8_takes(const Weights& w) {
  const bool whole = w.scales == nullptr || (w.block_rows == kF8Tile && w.block_cols == kF8Tile);
  return w.form == WeightForm::f8 && whole;
}

int linear_f8_pieces(const Weights& w) {
  constexpr int kBlocks = 128, kSteps = 8;  // wanted at least: of a grid, as GPUs have some 132 SMs; of a piece
  const auto blocks = static_cast<int>(ceil_div<std::int64_t>(w.rows, kOutputs));
  return std::max(1, std::min(kBlocks / blocks, static_cast<int>(w.stride / kF8Tile) / kSteps));
}

std::int64_t linear_f8_room(const LinearCall& call, int pieces) {
  const std::int64_t blocks = call.n_tiles * ceil_div<std::int64_t>(call.most_outputs, kOutputs);
  return pieces > 1 && blocks <= kF8FewBlocks ? blocks * pieces * call.tile_rows * kOutputs : 0;
}

void linear_f8(const LinearCall& call, const F8Rows& x, cudaStream_t stream) {
  if (call.tile_rows == kMmaFewRows)
    launch_rows<kMmaFewRows, false>(call, nullptr, x, {}, stream);
  else
    launch_rows<kMmaManyRows, false>(call, nullptr, x, {}, stream);
}

void gated_f8(const LinearCall& call, const Weights* ups, const F8Rows& x, const F8Rows& out, cudaStream_t stream) {
  if (call.tile_rows == kMmaFewRows)
    launch_rows<kMmaFewRows, true>(call, ups, x, out, stream);
  else
    launch_rows<kMmaManyRows, true>(call, ups, x, out, stream);
}

}  // namespace shoal::cuda
