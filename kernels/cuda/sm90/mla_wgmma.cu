#include <algorithm>

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/sm90/instructions.h"

namespace shoal::cuda {
namespace {

using namespace sm90;

constexpr int kKeyDim = 576, kValueDim = 512, kRows = 64, kPositions = 64;
constexpr int kWarpGroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpGroup;
constexpr int kConsumerThreads = kConsumers * kWarpGroup, kConsumerWarps = kConsumerThreads / kWarp;
constexpr int kSpan = kPositions / kConsumers;                        // positions of a warp group's scores
constexpr int kPanelColumns = 64, kPanels = kKeyDim / kPanelColumns;  // 128 bytes of a row
constexpr int kPanelBytes = 64 * 128, kStages = 2;
static_assert(kRows * 128 == kPanelBytes && kPositions * 128 == kPanelBytes);

/// Every panel is 64 rows of 128 bytes, swizzled: 16-byte chunk c of row r lies at chunk c ^ (r % 8).
struct Shared {
  unsigned char q[kPanels][kPanelBytes];
  unsigned char key[kStages][kPanels][kPanelBytes];
  unsigned char share[kPanelBytes];  // exp(s - m) [64 rows, 64 positions]
  float most[kConsumers][kRows], sum[kConsumers][kRows];
  MemoryBarrier full[kStages], empty[kStages];
};
static_assert(sizeof(Shared) <= 227 << 10);

/// The last warp group: cached rows, 64 positions at a time, eight threads to a row's 128 bytes.
__device__ __forceinline__ void bring_keys(Shared& s, const CachedRows& cached, int first, int end) {
  constexpr int kThreadsPerRow = 8, kAtOnce = kWarpGroup / kThreadsPerRow;
  const int thread = static_cast<int>(threadIdx.x) % kWarpGroup, chunk = thread % kThreadsPerRow;
#pragma unroll 1
  for (int block = first, i = 0; block < end; block += kPositions, ++i) {
    const int stage = i % kStages;
    if (i >= kStages) barrier_wait(&s.empty[stage], static_cast<unsigned>(i / kStages - 1) % 2);
#pragma unroll 1
    for (int r = thread / kThreadsPerRow; r < kPositions; r += kAtOnce) {
      const int position = block + r;
      const bool there = position < end;
      const std::byte* row = there ? cached[position] : cached.cache.data;
      const int to = swizzled(r, chunk * 16);
      if (cached.cache.type == KvType::bf16) {
#pragma unroll
        for (int p = 0; p < kPanels; ++p)
          copy_async_16(&s.key[stage][p][to], row + p * 128 + chunk * 16, there ? 16 : 0);
      } else {
#pragma unroll 3
        for (int p = 0; p < kPanels; ++p)
          *reinterpret_cast<uint4*>(&s.key[stage][p][to]) =
              there ? eight_of_bytes(cached.cache, row, p * kPanelColumns + chunk * 8) : make_uint4(0, 0, 0, 0);
      }
    }
    commit_copies();
    wait_copies<0>();
    fence_shared_for_wgmma();
    barrier_arrive(&s.full[stage]);
  }
}

/// MLA in the absorbed form on Hopper's tensor cores: attention_mma.cu's work, by warp groups.
///   shape      q [tokens, heads * 576] FP32, cache rows of 576 BF16, E4M3 or INT8 -> out [tokens, heads * 512] FP32 or
///              parts [tokens, heads, parts, 514] (merge_parts.cu)
///   precision  queries, keys, values and exp(s - m) rounded to BF16; scores and sums FP32
///   grid       (tiles of queries, tiles of 64 heads, parts of 1,024 positions); one warp group brings 64 positions at
///              once, two stages; two compute half of the scores each, then, from all of them, 256 of the 512 columns
///              each (the split of FlashMLA's kernel); queries, keys, values and shares are read from shared memory
///   order      blocks of 64 positions ascending with a running maximum; a query's result does not depend on its
///              neighbours
///   traffic    R1: a cached row twice for its 128 heads (the second time from L2); parts as attention_mma.cu's
///   limit      the tensor cores: 278 kFLOP a cached position and R1 token, 37 us of an H200 (989 TFLOP/s) for 32
///              queries of 4,096 positions. By count shared memory comes first: at 128 bytes a clock the operands of
///              scores take three times the products' clocks (queries are read again for 32 positions), those of the
///              values 1.25 times, and softmax takes turns with them; FlashMLA's kernel, 660 TFLOP/s, gives each warp
///              group scores of 64 positions of its own and keeps a part of the queries in registers
__global__ void __launch_bounds__(kThreads, 1)
    mla_wgmma_kernel(const float* q, std::int64_t q_stride, AttentionCall call, QueryTable queries, CacheView cache,
                     float* parts, float* out, std::int64_t out_stride) {
  follow_previous_kernels();
  auto& s = *reinterpret_cast<Shared*>(dynamic_shared());
  const HeadGroups& h = call.heads;
  const int thread = static_cast<int>(threadIdx.x), group = thread / kWarpGroup, lane = thread % kWarp;
  const Tile tile = call.tiles.tile[blockIdx.x];
  const int first = static_cast<int>(blockIdx.z) * call.part;
  int longest = 0;
  for (int i = 0; i < tile.count; ++i) longest = max(longest, queries.length[tile.first + i]);
  if (first >= longest) return;  // the whole block
  const int end = min(first + call.part, longest);

  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&s.full[i], kWarpGroup);
      barrier_init(&s.empty[i], kConsumerWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  if (group == kConsumers) {
    give_registers_up<56>();
    return bring_keys(s, CachedRows(cache, queries, tile.first), first, end);
  }

  take_registers<224>();
  const TileRows rows{tile, static_cast<int>(blockIdx.y) * call.heads_in_tile, call.heads_in_tile, h.heads};
#pragma unroll 1
  for (int i = thread; i < kRows * kKeyDim / 2; i += kConsumerThreads) {
    const int row = i / (kKeyDim / 2), c = i % (kKeyDim / 2) * 2;
    unsigned pair = 0;
    if (rows.holds(row)) {
      const float* from = q + rows.token(row) * q_stride + std::int64_t{rows.head(row)} * kKeyDim + c;
      pair = bf16_pair(from[0], from[1]);
    }
    store_pair(&s.q[c / kPanelColumns][swizzled(row, c % kPanelColumns * 2)], pair);
  }
  fence_shared_for_wgmma();
  named_barrier<1, kConsumerThreads>();

  const int g = lane / 4, t = lane % 4, row0 = thread % kWarpGroup / kWarp * 16 + g;  // and row0 + 8
  const float factor = call.scale * 1.44269504088896f;                                // exp(x) is 2^(x log2 e)
  int length[2];
  float most[2], sum[2] = {}, value[kValueDim / kConsumers / 2] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    length[j] = rows.holds(row0 + 8 * j) ? queries.length[rows.token(row0 + 8 * j)] : 0;
    most[j] = -INFINITY;
  }
#pragma unroll 1
  for (int block = first, i = 0; block < end; block += kPositions, ++i) {
    const int stage = i % kStages;
    barrier_wait(&s.full[stage], static_cast<unsigned>(i / kStages) % 2);
    float score[kSpan / 2];
    wgmma_fence();
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      const std::uint64_t a = swizzled_operand(s.q[p]), b = swizzled_operand(s.key[stage][p] + group * kSpan * 128);
#pragma unroll
      for (int k = 0; k < kPanelColumns / 16; ++k)
        wgmma_bf16_32(score, a + k * 2, b + k * 2, p + k > 0);  // 32 bytes on
    }
    wgmma_commit();
    wgmma_wait<0>();

    float best[2] = {most[0], most[1]};
#pragma unroll
    for (int v = 0; v < kSpan / 2; ++v) {
      if (block + group * kSpan + 2 * t + v % 2 + 8 * (v / 4) >= length[v / 2 % 2]) score[v] = -INFINITY;
      best[v / 2 % 2] = fmaxf(best[v / 2 % 2], score[v]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 1));
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 2));
      if (t == 0) s.most[group][row0 + 8 * j] = best[j];
    }
    named_barrier<1, kConsumerThreads>();  // both have done with the shares before, too
    float base[2], shrink[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      best[j] = fmaxf(s.most[0][row0 + 8 * j], s.most[1][row0 + 8 * j]);
      base[j] = best[j] == -INFINITY ? 0.0f : __fmul_rn(best[j], factor);
      shrink[j] = exp2f(__fmul_rn(most[j], factor) - base[j]);  // 1 exactly where they are the same
      most[j] = best[j];
      sum[j] *= shrink[j];
    }
#pragma unroll
    for (int v = 0; v < kSpan / 2; v += 2) {
      const int j = v / 2 % 2;
      const unsigned pair =
          bf16_pair(exp2f(fmaf(score[v], factor, -base[j])), exp2f(fmaf(score[v + 1], factor, -base[j])));
      sum[j] += widen_bf16(pair & 0xffffu) + widen_bf16(pair >> 16);
      store_pair(&s.share[swizzled(row0 + 8 * j, (group * kSpan + 2 * t + 8 * (v / 4)) * 2)], pair);
    }
    if (__ballot_sync(kAllLanes, shrink[0] != 1.0f || shrink[1] != 1.0f) != 0) {
#pragma unroll
      for (int v = 0; v < kValueDim / kConsumers / 2; ++v) value[v] *= shrink[v / 2 % 2];
    }
    fence_shared_for_wgmma();
    named_barrier<2, kConsumerThreads>();

    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k)
      wgmma_bf16_columns_256(
          value, swizzled_operand(s.share) + k * 2,
          swizzled_columns(s.key[stage][group * (kPanels / kConsumers)] + k * 16 * 128, kPanelBytes));
    wgmma_commit();
    wgmma_wait<0>();
    __syncwarp();
    if (lane == 0) barrier_arrive(&s.empty[stage]);
  }

#pragma unroll
  for (int j = 0; j < 2; ++j) {
    sum[j] += __shfl_xor_sync(kAllLanes, sum[j], 1);
    sum[j] += __shfl_xor_sync(kAllLanes, sum[j], 2);
    if (t == 0) s.sum[group][row0 + 8 * j] = sum[j];
  }
  named_barrier<1, kConsumerThreads>();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = row0 + 8 * j;
    if (first >= length[j]) continue;  // no part of this row
    const float total = s.sum[0][row] + s.sum[1][row];
    const std::int64_t token = rows.token(row), head = rows.head(row);
    float* to = out + token * out_stride + head * kValueDim;
    float unit = 1.0f / total;
    if (call.parts > 0) {
      to = parts + (((token - call.tiles.first_query) * h.heads + head) * call.parts + blockIdx.z) * (kValueDim + 2);
      unit = 1.0f;
      if (group == 0 && t == 0) to[kValueDim] = most[j] * call.scale, to[kValueDim + 1] = total;
    }
#pragma unroll
    for (int v = 0; v < kValueDim / kConsumers / 2; ++v) {
      if (v / 2 % 2 != j) continue;
      const int c = group * (kValueDim / kConsumers) + 2 * t + v % 2 + 8 * (v / 4);
      to[c] = value[v] * unit;
    }
  }
}

}  // namespace

bool mla_wgmma_takes(const HeadGroups& h) {
  return h.groups == 1 && h.key_dim == kKeyDim && h.value_dim == kValueDim && h.first_key == 0 && h.first_value == 0;
}

int mla_wgmma_queries(const HeadGroups& h) { return std::max(1, kRows / h.heads); }

void mla_wgmma(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
               std::int32_t longest, const AttentionTiles& tiles, const KvLayer& cache, float* parts, Rows<float> out,
               cudaStream_t stream) {
  AttentionCall call = attention_call(heads, scale, longest, tiles);
  call.heads_in_tile = std::min(heads.heads, kRows);
  call.head_tiles = ceil_div(heads.heads, call.heads_in_tile);
  const dim3 grid(static_cast<unsigned>(tiles.count), static_cast<unsigned>(call.head_tiles),
                  static_cast<unsigned>(std::max(1, call.parts)));
  launch_with_shared("mla_wgmma", mla_wgmma_kernel, grid, kThreads, sizeof(Shared), stream, q.data, q.stride, call,
                     queries,
                     CacheView{static_cast<const std::byte*>(cache.data), cache.type, cache.page_tokens, cache.width},
                     parts, out.data, out.stride);
}

}  // namespace shoal::cuda
