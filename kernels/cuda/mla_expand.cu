#include <algorithm>

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/weight_row.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kStages = 2;
constexpr int kPositions = ExpandedKv::kTile, kOutputs = 128, kDepth = 64;  // of a block; of a step
constexpr int kPad = 8;    // BF16 values between rows in shared memory, so that ldmatrix finds eight rows in all banks
constexpr int kChunk = 8;  // columns, 16 bytes of BF16
constexpr int kRowsDown = 32, kAcross = 2;  // positions of a warp; warps side by side

struct Shared {
  alignas(16) std::uint16_t latent[kStages][kPositions][kDepth + kPad];
  union {  // as the matrices lie in memory
    std::uint16_t value[kOutputs][kDepth + kPad];
    std::uint16_t key[kDepth][kOutputs + kPad];
  } weight[kStages];
};
struct Results {  // afterwards, in the same memory
  alignas(16) std::uint16_t of[kPositions][kOutputs + kPad];
};
static_assert(sizeof(Shared) <= 99 << 10 && sizeof(Results) <= sizeof(Shared));

struct Matrices {
  const Weights *k_up, *v_up;
  int rank;
};

/// Eight weights of a row into shared memory as BF16, which holds E4M3 exactly.
template <WeightForm kForm>
__device__ __forceinline__ void fetch_weights(const Weights& w, std::int64_t row, std::int64_t col, std::uint16_t* to) {
  const bool there = row < w.rows && col < w.stride;
  if constexpr (kForm == WeightForm::bf16) {
    copy_async_16(to, w.data + (there ? (row * w.stride + col) * 2 : 0), there ? 16 : 0);
  } else {
    uint2 codes{0, 0};
    if (there) codes = *reinterpret_cast<const uint2*>(w.data + f8_offset(row, col, w.stride / kF8Tile));
    unsigned pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned two = (i < 2 ? codes.x : codes.y) >> (16 * (i % 2));
      pair[i] =
          __float_as_uint(widen_f8(two & 0xffu)) >> 16 | (__float_as_uint(widen_f8(two >> 8 & 0xffu)) & 0xffff0000u);
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
}

/// kKeys: [depth, outputs] weights, else [outputs, depth].
template <WeightForm kForm, bool kKeys>
__device__ __forceinline__ void expand(const CachedRows& cached, int length, int rank, const Weights& w,
                                       const ExpandedKv& out) {
  auto& s = *reinterpret_cast<Shared*>(dynamic_shared());
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int first = static_cast<int>(blockIdx.x) * kPositions, head = static_cast<int>(blockIdx.y) / 2;
  const int output0 = static_cast<int>(blockIdx.z) * kOutputs;

  const auto fetch = [&](int step) {
    const int stage = step % kStages, depth = step * kDepth;
#pragma unroll 1
    for (int i = thread; i < kPositions * kDepth / kChunk; i += kThreads) {
      const int row = i / (kDepth / kChunk), at = i % (kDepth / kChunk) * kChunk;
      const bool there = first + row < length && depth + at < rank;
      const std::byte* from = there ? cached[first + row] : cached.cache.data;
      std::uint16_t* to = &s.latent[stage][row][at];
      if (cached.cache.type == KvType::bf16)
        copy_async_16(to, there ? from + (depth + at) * 2 : from, there ? 16 : 0);
      else
        *reinterpret_cast<uint4*>(to) = there ? eight_of_bytes(cached.cache, from, depth + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll 2
    for (int i = thread; i < kOutputs * kDepth / kChunk; i += kThreads) {
      if constexpr (kKeys) {
        const int row = i / (kOutputs / kChunk), at = i % (kOutputs / kChunk) * kChunk;
        fetch_weights<kForm>(w, depth + row, output0 + at, &s.weight[stage].key[row][at]);
      } else {
        const int row = i / (kDepth / kChunk), at = i % (kDepth / kChunk) * kChunk;
        fetch_weights<kForm>(w, output0 + row, depth + at, &s.weight[stage].value[row][at]);
      }
    }
    commit_copies();
  };

  constexpr int kDown = kRowsDown / 16, kBlocks = kOutputs / kAcross / 8;
  const int row0 = warp / kAcross * kRowsDown, column0 = warp % kAcross * (kOutputs / kAcross);
  const int steps = ceil_div(rank, kDepth);
  float sum[kDown][kBlocks][4] = {};
  fetch(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch(step + 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();  // this step is there for all
    const int stage = step % kStages;
    float part[kDown][kBlocks][4] = {};
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      unsigned a[kDown][4];
#pragma unroll
      for (int m = 0; m < kDown; ++m)
        load_matrices(a[m], &s.latent[stage][row0 + m * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
      for (int n = 0; n < kBlocks; n += 2) {
        unsigned b[4];
        if constexpr (kKeys)
          load_matrices_transposed(b, &s.weight[stage].key[k + lane % 16][column0 + n * 8 + lane / 16 * 8]);
        else
          load_matrices(b, &s.weight[stage].value[column0 + n * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
        for (int m = 0; m < kDown; ++m) {
          mma_bf16(kForm == WeightForm::f8 ? part[m][n] : sum[m][n], a[m], {b[0], b[1]});
          mma_bf16(kForm == WeightForm::f8 ? part[m][n + 1] : sum[m][n + 1], a[m], {b[2], b[3]});
        }
      }
    }
    if constexpr (kForm == WeightForm::f8) {
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int output = output0 + column0 + n * 8 + 2 * t + i, depth = step * kDepth;
          const bool there = output < (kKeys ? w.cols : w.rows);
          const float scale = !there ? 0.0f : kKeys ? scale_of(w, depth, output) : scale_of(w, output, depth);
#pragma unroll
          for (int m = 0; m < kDown; ++m) {
            sum[m][n][i] = fmaf(scale, part[m][n][i], sum[m][n][i]);
            sum[m][n][i + 2] = fmaf(scale, part[m][n][i + 2], sum[m][n][i + 2]);
          }
        }
    }
    __syncthreads();  // all have done with the stage
  }

  auto& results = *reinterpret_cast<Results*>(dynamic_shared());
#pragma unroll
  for (int m = 0; m < kDown; ++m)
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        store_pair(&results.of[row0 + m * 16 + g + 8 * j][column0 + n * 8 + 2 * t],
                   bf16_pair(sum[m][n][2 * j], sum[m][n][2 * j + 1]));
  __syncthreads();
  const int columns = min(kOutputs, (kKeys ? out.nope : out.value) - output0);
  const int rows = out.tiled ? kPositions : min(kPositions, length - first);
  const int to0 = kKeys ? output0 : out.nope + out.rope + output0;
#pragma unroll 1
  for (int i = thread; i < rows * (kOutputs / kChunk); i += kThreads) {
    const int row = i / (kOutputs / kChunk), at = i % (kOutputs / kChunk) * kChunk;
    const void* from = &results.of[row][at];
    if (at < columns)
      *reinterpret_cast<uint4*>(out.data + out.place(first + row, head, to0 + at)) = *static_cast<const uint4*>(from);
  }
}

/// The part of the keys that all heads share.
__device__ __forceinline__ void copy_rotated(const CachedRows& cached, int length, int rank, const ExpandedKv& out) {
  const int first = static_cast<int>(blockIdx.x) * kPositions, head = static_cast<int>(blockIdx.y) / 2;
  const int rows = out.tiled ? kPositions : min(kPositions, length - first);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * (out.rope / kChunk); i += kThreads) {
    const int row = i / (out.rope / kChunk), at = i % (out.rope / kChunk) * kChunk;
    uint4 chunk = make_uint4(0, 0, 0, 0);
    if (first + row < length) {
      const std::byte* from = cached[first + row];
      chunk = cached.cache.type == KvType::bf16 ? *reinterpret_cast<const uint4*>(from + (rank + at) * 2)
                                                : eight_of_bytes(cached.cache, from, rank + at);
    }
    *reinterpret_cast<uint4*>(out.data + out.place(first + row, head, out.nope + at)) = chunk;
  }
}

/// Keys and values of MLA's heads from cached latents, on the tensor cores of every GPU from sm_80 on.
///   shape      cache rows [length, rank + rope] BF16, E4M3 or INT8; k_up [heads] of [rank, nope], v_up [heads] of
///              [value, rank] BF16 or E4M3 -> [length, heads, nope + rope + value] BF16
///   precision  latents as BF16, weights exactly, FP32 sums; E4M3 sums are scaled every 64 columns of the rank
///   grid       (tiles of 128 positions, heads * (keys, values), tiles of 128 outputs); eight warps of 32 positions and
///              64 outputs; the rank in steps of 64, two stages. A block of keys also copies the rotated part
///   order      ascending columns of the rank in one sum
///   traffic    R1: 640 B written for a position and head, 335 MB for 4,096 positions, 70 us of an H200; latents and
///              weights come from L2: 33 KB for 128 positions and 128 outputs a step, 64 FLOP a byte, which limits it
///   limit      arithmetic: 33.6 MFLOP a position, 139 us of an H200 (989 TFLOP/s) for 4,096; some 390 us by L2 at
///              5.5 TB/s
template <WeightForm kForm>
__global__ void __launch_bounds__(kThreads, 1)
    mla_expand_kernel(CacheView cache, QueryTable queries, int length, Matrices matrices, ExpandedKv out) {
  follow_previous_kernels();
  const CachedRows cached(cache, queries, 0);
  const int head = static_cast<int>(blockIdx.y) / 2;
  if (blockIdx.y % 2 == 0) {
    if (static_cast<int>(blockIdx.z) * kOutputs < out.nope)
      expand<kForm, true>(cached, length, matrices.rank, matrices.k_up[head], out);
    if (blockIdx.z == 0) copy_rotated(cached, length, matrices.rank, out);
  } else if (static_cast<int>(blockIdx.z) * kOutputs < out.value) {
    expand<kForm, false>(cached, length, matrices.rank, matrices.v_up[head], out);
  }
}

}  // namespace

bool mla_expand_takes(const Weights& k_up, const Weights& v_up) {
  const auto whole = [](int block, std::int64_t size) { return block % kDepth == 0 || block >= size; };
  if (k_up.form != v_up.form || k_up.rows != v_up.cols) return false;
  for (const std::int64_t size : {k_up.rows, k_up.cols, v_up.rows})
    if (size % kChunk != 0) return false;
  if (k_up.form == WeightForm::bf16) return true;
  return k_up.form == WeightForm::f8 && (k_up.scales == nullptr || whole(k_up.block_rows, k_up.rows)) &&
         (v_up.scales == nullptr || whole(v_up.block_cols, v_up.cols));
}

void mla_expand(const KvLayer& cache, const QueryTable& queries, int length, int rank, const Weights* k_up,
                const Weights* v_up, WeightForm form, const ExpandedKv& out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(length, kPositions)), static_cast<unsigned>(out.heads * 2),
                  static_cast<unsigned>(ceil_div(std::max(out.nope, out.value), kOutputs)));
  const auto run = [&](auto kernel) {
    launch_with_shared("mla_expand", kernel, grid, kThreads, sizeof(Shared), stream,
                       CacheView{static_cast<const std::byte*>(cache.data), cache.type, cache.page_tokens, cache.width},
                       queries, length, Matrices{k_up, v_up, rank}, out);
  };
  if (form == WeightForm::bf16)
    run(mla_expand_kernel<WeightForm::bf16>);
  else
    run(mla_expand_kernel<WeightForm::f8>);
}

}  // namespace shoal::cuda
