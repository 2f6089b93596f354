#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/sm90/instructions.h"

namespace shoal::cuda {
namespace {

using namespace sm90;

constexpr int kNope = 128, kRope = 64, kKeyDim = kNope + kRope, kValueDim = 128;
constexpr int kRows = 64, kPositions = ExpandedKv::kTile;  // queries of a warp group; positions of a step
constexpr int kWarpGroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpGroup;
constexpr int kConsumerThreads = kConsumers * kWarpGroup, kConsumerWarps = kConsumerThreads / kWarp;
constexpr int kPanel = ExpandedKv::kPanel, kKeyPanels = kKeyDim / kPanel, kValuePanels = kValueDim / kPanel;
constexpr int kPanelBytes = kPositions * kPanel * 2, kStages = 2;
static_assert(kConsumers * kRows == kPromptRows);

struct Shared {
  unsigned char q[kConsumers][kKeyPanels][kRows * kPanel * 2];
  unsigned char key[kStages][kKeyPanels][kPanelBytes];
  unsigned char value[kStages][kValuePanels][kPanelBytes];
  MemoryBarrier key_full[kStages], key_empty[kStages], value_full[kStages], value_empty[kStages];
};
static_assert(sizeof(Shared) <= 227 << 10);

/// One thread: a head's keys and values, 128 positions at a time.
__device__ __forceinline__ void bring(Shared& s, const ExpandedKv& kv, int head, int end) {
#pragma unroll 1
  for (int i = 0; i * kPositions < end; ++i) {
    const int stage = i % kStages;
    const unsigned last_round = static_cast<unsigned>(i / kStages - 1) % 2;
    const auto* from = reinterpret_cast<const unsigned char*>(kv.data + kv.place(i * kPositions, head, 0));
    if (i >= kStages) barrier_wait(&s.key_empty[stage], last_round);
    barrier_arrive_expecting(&s.key_full[stage], sizeof s.key[stage]);
    copy_bulk(s.key[stage], from, sizeof s.key[stage], &s.key_full[stage]);
    if (i >= kStages) barrier_wait(&s.value_empty[stage], last_round);
    barrier_arrive_expecting(&s.value_full[stage], sizeof s.value[stage]);
    copy_bulk(s.value[stage], from + sizeof s.key[stage], sizeof s.value[stage], &s.value_full[stage]);
  }
}

/// Attention of many queries of one sequence over keys and values of each head, on Hopper's tensor cores (the form of
/// FlashAttention-3, arXiv 2407.08608, without its overlap within a warp group).
///   shape      q [tokens, heads * 192] FP32, keys and values BF16 in tiles (ExpandedKv) -> out [tokens, heads * 128]
///   precision  queries, keys, values and exp(s - m) rounded to BF16; scores, sums and results FP32
///   grid       (tiles of 128 queries, heads); one warp group has the copy engine bring 128 positions, keys 48 KB and
///              values 32 KB, two stages; two take 64 queries each: scores of queries and keys in shared memory, then
///              values, the shares staying in registers. While one computes shares the other multiplies
///   order      blocks of 128 positions ascending with a running maximum, in one part; scores are masked by each
///              query's own length, so a query's result does not depend on its neighbours
///   traffic    keys and values of a head once for 128 queries, 640 B a position, after the first time from L2:
///              128 FLOP a byte
///   limit      the tensor cores: 82 kFLOP a query and position seen, 695 us of an H200 (989 TFLOP/s) for a prompt of
///              4,096. The absorbed form takes 278 kFLOP, and 34 MFLOP a query for absorbing, this one 34 MFLOP a
///              position for mla_expand(): less arithmetic from 171 queries on, however many positions they see, with
///              fewer positions earlier, and always for a prompt without a past, in the end 3.4 times less
__global__ void __launch_bounds__(kThreads, 1)
    mla_prompt_kernel(const float* q, std::int64_t q_stride, float scale, QueryTable queries, const Tile* tiles,
                      ExpandedKv kv, float* out, std::int64_t out_stride) {
  follow_previous_kernels();
  auto& s = *reinterpret_cast<Shared*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), group = thread / kWarpGroup, lane = thread % kWarp;
  const Tile tile = tiles[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  int end = 0;
  for (int i = 0; i < tile.count; ++i) end = max(end, queries.length[tile.first + i]);

  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.key_full[i], 1);
      barrier_init(&s.value_full[i], 1);
      barrier_init(&s.key_empty[i], kConsumerWarps);
      barrier_init(&s.value_empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (group == kConsumers) {
    give_registers_up<24>();
    if (thread == kConsumerThreads) bring(s, kv, head, end);
    return;
  }

  take_registers<240>();
  const int in_group = thread % kWarpGroup;
#pragma unroll 1
  for (int i = in_group; i < kRows * kKeyDim / 2; i += kWarpGroup) {
    const int row = i / (kKeyDim / 2), c = i % (kKeyDim / 2) * 2, of_tile = group * kRows + row;
    unsigned pair = 0;
    if (of_tile < tile.count) {
      const float* from = q + (std::int64_t{tile.first} + of_tile) * q_stride + std::int64_t{head} * kKeyDim + c;
      pair = bf16_pair(from[0], from[1]);
    }
    store_pair(&s.q[group][c / kPanel][swizzled(row, c % kPanel * 2)], pair);
  }
  fence_shared_for_wgmma();
  named_barrier<1, kConsumerThreads>();

  const int g = lane / 4, t = lane % 4, row0 = group * kRows + in_group / kWarp * 16 + g;  // and row0 + 8
  const float factor = scale * 1.44269504088896f;                                          // exp(x) is 2^(x log2 e)
  int length[2];
  float most[2], sum[2] = {}, value[kValueDim / 2] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    length[j] = row0 + 8 * j < tile.count ? queries.length[tile.first + row0 + 8 * j] : 0;
    most[j] = -INFINITY;
  }
#pragma unroll 1
  for (int block = 0, i = 0; block < end; block += kPositions, ++i) {
    const int stage = i % kStages;
    const unsigned round = static_cast<unsigned>(i / kStages) % 2;
    float score[kPositions / 2];
    barrier_wait(&s.key_full[stage], round);
    wgmma_fence();
#pragma unroll
    for (int p = 0; p < kKeyPanels; ++p) {
      const std::uint64_t a = swizzled_operand(s.q[group][p]), b = swizzled_operand(s.key[stage][p]);
#pragma unroll
      for (int k = 0; k < kPanel / 16; ++k) wgmma_bf16_128(score, a + k * 2, b + k * 2, p + k > 0);  // 32 bytes on
    }
    wgmma_commit();
    wgmma_wait<0>();
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.key_empty[stage]);

    float best[2] = {most[0], most[1]};
#pragma unroll
    for (int v = 0; v < kPositions / 2; ++v) {
      if (block + 2 * t + v % 2 + 8 * (v / 4) >= length[v / 2 % 2]) score[v] = -INFINITY;
      best[v / 2 % 2] = fmaxf(best[v / 2 % 2], score[v]);
    }
    float base[2], shrink[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 1));
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 2));
      base[j] = best[j] == -INFINITY ? 0.0f : __fmul_rn(best[j], factor);
      shrink[j] = exp2f(__fmul_rn(most[j], factor) - base[j]);  // 1 exactly where they are the same
      most[j] = best[j];
      sum[j] *= shrink[j];
    }
    unsigned share[kPositions / 16][4];
#pragma unroll
    for (int v = 0; v < kPositions / 2; v += 2) {
      const int j = v / 2 % 2;
      const unsigned pair =
          bf16_pair(exp2f(fmaf(score[v], factor, -base[j])), exp2f(fmaf(score[v + 1], factor, -base[j])));
      sum[j] += widen_bf16(pair & 0xffffu) + widen_bf16(pair >> 16);
      share[v / 8][v / 2 % 4] = pair;
    }
    if (__ballot_sync(kAllLanes, shrink[0] != 1.0f || shrink[1] != 1.0f) != 0) {
#pragma unroll
      for (int v = 0; v < kValueDim / 2; ++v) value[v] *= shrink[v / 2 % 2];
    }

    barrier_wait(&s.value_full[stage], round);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
      wgmma_bf16_registers_128(value, share[k], swizzled_columns(s.value[stage][0] + k * 16 * 128, kPanelBytes));
    wgmma_commit();
    wgmma_wait<0>();
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.value_empty[stage]);
  }

#pragma unroll
  for (int j = 0; j < 2; ++j) {
    sum[j] += __shfl_xor_sync(kAllLanes, sum[j], 1);
    sum[j] += __shfl_xor_sync(kAllLanes, sum[j], 2);
    const int row = row0 + 8 * j;
    if (row >= tile.count) continue;
    float* to = out + (std::int64_t{tile.first} + row) * out_stride + std::int64_t{head} * kValueDim;
    const float unit = 1.0f / sum[j];
#pragma unroll
    for (int v = 0; v < kValueDim / 2; ++v)
      if (v / 2 % 2 == j) to[2 * t + v % 2 + 8 * (v / 4)] = value[v] * unit;
  }
}

}  // namespace

bool mla_prompt_takes(const ExpandedKv& kv) {
  return kv.tiled && kv.nope == kNope && kv.rope == kRope && kv.value == kValueDim;
}

void mla_prompt(Rows<const float> q, float scale, const QueryTable& queries, const AttentionTiles& tiles,
                const ExpandedKv& kv, Rows<float> out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(kv.heads));
  launch_with_shared("mla_prompt", mla_prompt_kernel, grid, kThreads, sizeof(Shared), stream, q.data, q.stride, scale,
                     queries, tiles.tile, kv, out.data, out.stride);
}

}  // namespace shoal::cuda
