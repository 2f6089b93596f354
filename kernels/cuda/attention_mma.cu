#include <algorithm>

#include "kernels/cuda/attention_tile.h"

// Attention on the tensor cores of every GPU from sm_80 on: decoding and prompts alike, MLA in the absorbed form and
// GQA, over the paged cache.
//
// A block's rows are the heads that share keys, of as many queries of one sequence as fit: for R1 half of one query's
// heads, for GQA nine queries of seven heads. Where a row's sums are cut depends on positions alone, and a row of a
// product on no other row, so a query's result does not depend on its neighbours. (One thing does cross: a value of a
// later token that is NaN or infinite makes NaN of earlier tokens of its own sequence in the same tile.)
namespace shoal::cuda {
namespace {

constexpr int kPad = 8;  // BF16 values between rows in shared memory, so that ldmatrix finds eight rows in all banks

/// Sizes that a kernel is made for; smaller heads are filled up with zeros. A block has kDown x kAcross warps: kDown
/// share the rows, 16 each, kAcross the positions and then the columns of the values.
template <int kKey, int kValue, bool kShared, int kRowWarps, int kColumnWarps, int kBlock, int kBuffers>
struct Config {
  static constexpr int kKeyDim = kKey, kValueDim = kValue, kDown = kRowWarps, kAcross = kColumnWarps;
  static constexpr bool kValuesInKeys = kShared;
  static constexpr int kRows = 16 * kDown, kThreads = kWarp * kDown * kAcross;
  static constexpr int kPositions = kBlock, kStages = kBuffers;
  static constexpr int kSpan = kPositions / kAcross, kValueSpan = kValueDim / kAcross;  // of a warp
  static constexpr int kThreadsPerPosition = kThreads / kPositions;
  static_assert(kSpan % 16 == 0 && kValueSpan % 16 == 0 && kThreads % kPositions == 0);
};

template <class C>
struct Shared {
  alignas(16) std::uint16_t q[C::kRows][C::kKeyDim + kPad];
  std::uint16_t key[C::kStages][C::kPositions][C::kKeyDim + kPad];
  std::uint16_t value[C::kValuesInKeys ? 1 : C::kStages][C::kValuesInKeys ? 1 : C::kPositions]
                     [C::kValuesInKeys ? kPad : C::kValueDim + kPad];
  std::uint16_t share[C::kRows][C::kPositions + kPad];  // exp(s - m)
  float most[C::kAcross][C::kRows];
};

/// Columns column .. column + dim of a cached row into shared memory as BF16, zeros up to kDim; zeros alone where there
/// is no row. A thread takes every kThreadsPerPosition-th chunk of eight.
template <int kDim, int kThreadsPerPosition>
__device__ __forceinline__ void fetch_row(const CacheView& cache, const std::byte* row, int column, int dim,
                                          std::uint16_t* to, int thread) {
#pragma unroll 2
  for (int c = thread * 8; c < kDim; c += kThreadsPerPosition * 8) {
    const bool there = row != nullptr && c < dim;
    if (cache.type == KvType::bf16)
      copy_async_16(to + c, there ? row + (column + c) * 2 : cache.data, there ? 16 : 0);
    else
      *reinterpret_cast<uint4*>(to + c) = there ? eight_of_bytes(cache, row, column + c) : make_uint4(0, 0, 0, 0);
  }
}

/// Attention of a tile's queries over a part of their sequence.
///   shape      q [tokens, heads * key_dim] FP32, cache rows BF16, E4M3 or INT8 -> out [tokens, heads * value_dim] FP32
///              or parts [tokens, heads, parts, value_dim + 2] (merge_parts.cu)
///   precision  queries, keys, values and exp(s - m) rounded to BF16; scores and sums FP32
///   grid       (tiles of queries, KV groups * tiles of heads, parts of 1,024 positions); MLA 64 rows and eight warps,
///              32 positions at a time, two stages of cp.async (99 KB GPUs: 32 rows, one stage); GQA 16 or 64 rows and
///              four warps, 64 positions
///   order      blocks of positions ascending with a running maximum (Milakov and Gimelshein, arXiv 1805.02867); scores
///              are masked by each row's own length
///   traffic    R1: a cached row twice for its 128 heads (the second time from L2); parts 2 KB a head and 1,024
///              positions, written and read: 135 MB for 128 queries of 4,096
///   limit      the tensor cores: 278 kFLOP a cached position and R1 token, 37 us of an H200 (989 TFLOP/s, which needs
///              wgmma; mma.sync stays below) for 32 queries of 4,096 positions; by count, ldmatrix of 16-row fragments
///              reaches three quarters of A100's. Long prompts come with keys and values of each head instead (192 and
///              128 columns, mla_expand.cu): 128 rows (99 KB GPUs: 64) of one head, eight warps, 64 positions
template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attention_mma_kernel(const float* q, std::int64_t q_stride, AttentionCall call, QueryTable queries, CacheView cache,
                         float* parts, float* out, std::int64_t out_stride) {
  follow_previous_kernels();
  auto& s = *reinterpret_cast<Shared<C>*>(dynamic_shared());
  const HeadGroups& h = call.heads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4, across = warp % C::kAcross, row0 = warp / C::kAcross * 16;
  const Tile tile = call.tiles.tile[blockIdx.x];
  const int group = static_cast<int>(blockIdx.y) / call.head_tiles;
  const int head0 = static_cast<int>(blockIdx.y) % call.head_tiles * call.heads_in_tile;
  const int first = static_cast<int>(blockIdx.z) * call.part;
  int longest = 0;
  for (int i = 0; i < tile.count; ++i) longest = max(longest, queries.length[tile.first + i]);
  if (first >= longest) return;  // the whole block
  const int end = min(first + call.part, longest);
  const CachedRows cached(cache, queries, tile.first);
  const int key_column = h.first_key + group * h.key_step, value_column = h.first_value + group * h.value_step;

  const int of_position = thread % C::kThreadsPerPosition, my_position = thread / C::kThreadsPerPosition;
  const auto fetch = [&](int block, int stage) {
    const int position = block + my_position;
    const std::byte* row = position < end ? cached[position] : nullptr;
    fetch_row<C::kKeyDim, C::kThreadsPerPosition>(cache, row, key_column, h.key_dim, s.key[stage][my_position],
                                                  of_position);
    if constexpr (!C::kValuesInKeys)
      fetch_row<C::kValueDim, C::kThreadsPerPosition>(cache, row, value_column, h.value_dim,
                                                      s.value[stage][my_position], of_position);
    commit_copies();
  };
  fetch(first, 0);

  const TileRows rows{tile, head0, call.heads_in_tile, h.heads};
#pragma unroll 1
  for (int i = thread; i < C::kRows * C::kKeyDim / 2; i += C::kThreads) {
    const int row = i / (C::kKeyDim / 2), c = i % (C::kKeyDim / 2) * 2;
    unsigned pair = 0;
    if (rows.holds(row) && c < h.key_dim) {
      const float* from =
          q + rows.token(row) * q_stride + (std::int64_t{group} * h.heads + rows.head(row)) * h.key_dim + c;
      pair = bf16_pair(from[0], from[1]);
    }
    store_pair(&s.q[row][c], pair);
  }

  constexpr int kScoreTiles = C::kSpan / 8, kValueTiles = C::kValueSpan / 8;
  const float factor = call.scale * 1.44269504088896f;  // exp(x) is 2^(x log2 e)
  int length[2];
  float most[2], value[kValueTiles][4] = {}, total[4] = {};  // of rows row0 + g and row0 + g + 8
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    length[j] = rows.holds(row0 + g + 8 * j) ? queries.length[rows.token(row0 + g + 8 * j)] : 0;
    most[j] = -INFINITY;
  }

  int stage = 0;
#pragma unroll 1
  for (int block = first; block < end; block += C::kPositions) {
    if (C::kStages == 2 && block + C::kPositions < end) {
      fetch(block + C::kPositions, stage ^ 1);
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
    __syncthreads();  // the block's rows are there for all

    float score[kScoreTiles][4] = {};
#pragma unroll 4
    for (int k = 0; k < C::kKeyDim; k += 16) {
      unsigned a[4];
      load_matrices(a, &s.q[row0 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 2) {
        unsigned b[4];
        load_matrices(b, &s.key[stage][across * C::kSpan + n * 8 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
        mma_bf16(score[n], a, {b[0], b[1]});
        mma_bf16(score[n + 1], a, {b[2], b[3]});
      }
    }

    float best[2] = {most[0], most[1]};
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = block + across * C::kSpan + n * 8 + 2 * t + i % 2;
        if (position >= length[i / 2]) score[n][i] = -INFINITY;
        best[i / 2] = fmaxf(best[i / 2], score[n][i]);
      }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 1));
      best[j] = fmaxf(best[j], __shfl_xor_sync(kAllLanes, best[j], 2));
    }
    if constexpr (C::kAcross > 1) {
      if (t == 0) s.most[across][row0 + g] = best[0], s.most[across][row0 + g + 8] = best[1];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < C::kAcross; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) best[j] = fmaxf(best[j], s.most[i][row0 + g + 8 * j]);
    }
    float shrink[2], base[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      base[j] = best[j] == -INFINITY ? 0.0f : __fmul_rn(best[j], factor);
      shrink[j] = exp2f(__fmul_rn(most[j], factor) - base[j]);  // 1 exactly where they are the same
      most[j] = best[j];
    }
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        store_pair(&s.share[row0 + g + 8 * j][across * C::kSpan + n * 8 + 2 * t],
                   bf16_pair(exp2f(fmaf(score[n][2 * j], factor, -base[j])),
                             exp2f(fmaf(score[n][2 * j + 1], factor, -base[j]))));
    if (__ballot_sync(kAllLanes, shrink[0] != 1.0f || shrink[1] != 1.0f) != 0) {
#pragma unroll
      for (int n = 0; n < kValueTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) value[n][i] *= shrink[i / 2];
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] *= shrink[i / 2];
    }
    if constexpr (C::kAcross > 1)
      __syncthreads();
    else
      __syncwarp();

#pragma unroll
    for (int k = 0; k < C::kPositions; k += 16) {
      unsigned a[4];
      load_matrices(a, &s.share[row0 + lane % 16][k + lane / 16 * 8]);
      mma_bf16(total, a, {0x3f803f80u, 0x3f803f80u});  // ones: the same sum in each column
#pragma unroll
      for (int n = 0; n < kValueTiles; n += 2) {
        const int column = across * C::kValueSpan + n * 8 + lane / 16 * 8;
        unsigned b[4];
        if constexpr (C::kValuesInKeys)
          load_matrices_transposed(b, &s.key[stage][k + lane % 16][column]);
        else
          load_matrices_transposed(b, &s.value[stage][k + lane % 16][column]);
        mma_bf16(value[n], a, {b[0], b[1]});
        mma_bf16(value[n + 1], a, {b[2], b[3]});
      }
    }
    __syncthreads();  // all have done with the stage
    if constexpr (C::kStages == 2)
      stage ^= 1;
    else if (block + C::kPositions < end)
      fetch(block + C::kPositions, 0);
  }

#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (first >= length[j]) continue;  // no part of this row
    const int row = row0 + g + 8 * j;
    const std::int64_t token = rows.token(row), head = std::int64_t{group} * h.heads + rows.head(row);
    const std::int64_t heads = std::int64_t{h.groups} * h.heads;
    float* to = out + token * out_stride + head * h.value_dim;
    float unit = 1.0f / total[2 * j];
    if (call.parts > 0) {
      to = parts + (((token - call.tiles.first_query) * heads + head) * call.parts + blockIdx.z) * (h.value_dim + 2);
      unit = 1.0f;
      if (across == 0 && t == 0) to[h.value_dim] = most[j] * call.scale, to[h.value_dim + 1] = total[2 * j];
    }
#pragma unroll
    for (int n = 0; n < kValueTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = across * C::kValueSpan + n * 8 + 2 * t + i;
        if (c < h.value_dim) to[c] = value[n][2 * j + i] * unit;
      }
  }
}

using Mla = Config<576, 512, true, 4, 2, 32, 2>;
using MlaSmall = Config<576, 512, true, 2, 2, 32, 1>;
template <int kDim>
using GqaMany = Config<kDim, kDim, false, 4, 1, 64, 2>;
template <int kDim>
using GqaFew = Config<kDim, kDim, false, 1, 4, 64, 2>;
// Heads of 192 columns with values of 128, as MLA's are when keys and values were made of latents.
using Wide = Config<192, 128, false, 8, 1, 64, 2>;
using WideSmall = Config<192, 128, false, 4, 1, 64, 1>;
constexpr int kFewRows = GqaFew<64>::kRows, kWideHead = 128, kNarrowHead = 64;
static_assert(sizeof(Shared<Mla>) <= 163 << 10 && sizeof(Shared<MlaSmall>) <= 99 << 10 &&
              sizeof(Shared<GqaMany<kWideHead>>) <= 99 << 10 && sizeof(Shared<Wide>) <= 163 << 10 &&
              sizeof(Shared<WideSmall>) <= 99 << 10);

bool values_in_keys(const HeadGroups& h) { return h.first_value == h.first_key && h.value_step == h.key_step; }

template <class C>
void launch_config(Rows<const float> q, AttentionCall call, const QueryTable& queries, const KvLayer& cache,
                   float* parts, Rows<float> out, cudaStream_t stream) {
  call.heads_in_tile = std::min(call.heads.heads, C::kRows);
  call.head_tiles = ceil_div(call.heads.heads, call.heads_in_tile);
  const dim3 grid(static_cast<unsigned>(call.tiles.count), static_cast<unsigned>(call.heads.groups * call.head_tiles),
                  static_cast<unsigned>(std::max(1, call.parts)));
  launch_with_shared("attention_mma", attention_mma_kernel<C>, grid, C::kThreads, sizeof(Shared<C>), stream, q.data,
                     q.stride, call, queries,
                     CacheView{static_cast<const std::byte*>(cache.data), cache.type, cache.page_tokens, cache.width},
                     parts, out.data, out.stride);
}

}  // namespace

bool attention_mma_takes(const HeadGroups& h, const KvLayer& cache, std::size_t shared_limit) {
  const bool mla = values_in_keys(h);
  if (cache.type == KvType::f32 || h.key_dim % 8 != 0 || h.value_dim % 8 != 0 || h.value_dim > h.key_dim) return false;
  if (mla ? h.key_dim > Mla::kKeyDim || h.value_dim > Mla::kValueDim
          : h.key_dim > Wide::kKeyDim || h.value_dim > Wide::kValueDim)
    return false;
  for (const int column : {h.first_key, h.key_step, h.first_value, h.value_step, cache.width})
    if (column % 8 != 0) return false;
  if (has_scales(cache.type) && kv_groups(cache.width) % 2 != 0) return false;  // four bytes at a time
  return shared_limit >= (mla ? sizeof(Shared<MlaSmall>) : sizeof(Shared<GqaMany<kWideHead>>));
}

int attention_mma_queries(const HeadGroups& h, int run, std::size_t shared_limit) {
  int rows = GqaMany<kWideHead>::kRows;
  if (values_in_keys(h))
    rows = sizeof(Shared<Mla>) <= shared_limit ? Mla::kRows : MlaSmall::kRows;
  else if (h.key_dim > kWideHead)
    rows = sizeof(Shared<Wide>) <= shared_limit ? Wide::kRows : WideSmall::kRows;
  else if (h.heads * run <= kFewRows)
    rows = kFewRows;
  return std::max(1, rows / h.heads);
}

std::int64_t attention_mma_parts(const HeadGroups& heads, std::int64_t tokens, std::int32_t longest) {
  if (longest <= kMmaPart) return 0;
  return tokens * heads.groups * heads.heads * ceil_div(longest, kMmaPart) * (heads.value_dim + 2);
}

void attention_mma(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
                   std::int32_t longest, const AttentionTiles& tiles, const KvLayer& cache, float* parts,
                   std::size_t shared_limit, Rows<float> out, cudaStream_t stream) {
  if (tiles.count == 0) return;
  const AttentionCall call = attention_call(heads, scale, longest, tiles);
  const auto run = [&]<class C>(C) { launch_config<C>(q, call, queries, cache, parts, out, stream); };
  const bool few = tiles.queries * heads.heads <= kFewRows;
  if (values_in_keys(heads)) {
    if (sizeof(Shared<Mla>) <= shared_limit)
      run(Mla());
    else
      run(MlaSmall());
  } else if (heads.key_dim > kWideHead) {
    sizeof(Shared<Wide>) <= shared_limit ? run(Wide()) : run(WideSmall());
  } else if (heads.key_dim <= kNarrowHead) {
    few ? run(GqaFew<kNarrowHead>()) : run(GqaMany<kNarrowHead>());
  } else {
    few ? run(GqaFew<kWideHead>()) : run(GqaMany<kWideHead>());
  }
}

}  // namespace shoal::cuda
