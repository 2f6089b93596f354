#include "kernels/cuda/kv_element.h"
#include "kernels/cuda/operations.h"

// Attention of single query tokens over a paged cache: MLA in the absorbed form, and GQA.
//
// Positions are taken in blocks that begin at multiples of kBlock, with a running maximum (Milakov and Gimelshein,
// arXiv 1805.02867), and a sequence is cut into parts at multiples of kPart, which different blocks compute and a
// second kernel merges in order. Both cuts depend on nothing but the position, so a query's result does not depend on
// its neighbours.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kBlock = 16, kAtOnce = 4, kPart = 512;
constexpr int kMaxKeyDim = 576;
constexpr float kMinusInfinity = -INFINITY;

struct Shape {
  HeadGroups heads;
  float scale;
  int head_tiles, parts;  // a group's heads in tiles of kWarps; parts of the longest query
};

/// Part of one query's attention for up to 8 heads that share keys: o = sum of exp(s - m) v, m = max s, l = sum of
/// exp(s - m) over the part's positions.
///   shape      q [tokens, heads * key_dim] FP32, cache rows in any KvType ->
///              parts [tokens, heads, parts, value_dim + 2]
///   precision  FP32 throughout; E4M3 and INT8 elements times their group's scale
///   grid       (tokens, KV groups * tiles of 8 heads, parts of 512 positions); a warp holds a head's query and output
///              in registers, each lane every 32nd of their columns; 16 positions at a time are widened into shared
///              memory for all eight heads
///   traffic    a cache row once for 8 heads: for R1 16 reads of each row, from L2 after the first
///   limit      arithmetic: 278 kFLOP per R1 token and cached position, in FP32 outside the tensor cores 0.004 us of an
///              H200 (67 TFLOP/s): 32 queries of 4,096 positions take at least 0.55 ms a layer
template <int kSteps, bool kValuesInKeys>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(const float* q, std::int64_t q_stride, Shape shape, QueryTable queries, const std::byte* cache,
                     KvType type, int page_tokens, int width, float* parts) {
  follow_previous_kernels();
  constexpr int kColumns = kSteps * kWarp;
  struct Shared {
    float key[kBlock][kColumns];
    float value[kValuesInKeys ? 1 : kBlock][kColumns];
  };
  Shared& s = shared<Shared>();
  const HeadGroups& h = shape.heads;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t token = blockIdx.x;
  const int group = static_cast<int>(blockIdx.y) / shape.head_tiles;
  const int in_group = static_cast<int>(blockIdx.y) % shape.head_tiles * kWarps + warp;
  const int length = queries.length[token];
  const int first = static_cast<int>(blockIdx.z) * kPart;
  if (first >= length) return;  // the whole block
  const int end = min(first + kPart, length);
  const bool active = in_group < h.heads;
  const int head = group * h.heads + in_group;
  const int key_column = h.first_key + group * h.key_step, value_column = h.first_value + group * h.value_step;
  const std::int32_t* pages = queries.pages + queries.first_page[token];
  const std::int64_t row_bytes = kv_row_bytes(type, width);

  float query[kSteps], out[kSteps] = {};
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int d = lane + i * kWarp;
    query[i] = active && d < h.key_dim ? q[token * q_stride + std::int64_t{head} * h.key_dim + d] : 0.0f;
  }
  float most = kMinusInfinity, sum = 0;

#pragma unroll 1
  for (int block = first; block < end; block += kBlock) {
    const int count = min(kBlock, end - block);
    __syncthreads();  // all have done with the block before
#pragma unroll 1
    for (int p = warp; p < count; p += kWarps) {
      const int position = block + p;
      const std::byte* row =
          cache + (std::int64_t{pages[position / page_tokens]} * page_tokens + position % page_tokens) * row_bytes;
#pragma unroll 1
      for (int d = lane; d < kColumns; d += kWarp) {
        s.key[p][d] = d < h.key_dim ? load_kv(type, row, key_column + d, width) : 0.0f;
        if constexpr (!kValuesInKeys)
          s.value[p][d] = d < h.value_dim ? load_kv(type, row, value_column + d, width) : 0.0f;
      }
    }
    __syncthreads();

    // Warps without a head and positions without a row take part as well: shuffles under a condition are dear.
#pragma unroll 1
    for (int four = 0; four < kBlock; four += kAtOnce) {
      float score[kAtOnce], best = most;
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        score[p] = 0;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) score[p] = fmaf(query[i], s.key[four + p][lane + i * kWarp], score[p]);
      }
      const float total = warp_sums<kAtOnce>(score, lane) * shape.scale;
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const float of_position = __shfl_sync(kAllLanes, total, p * (kWarp / kAtOnce));
        score[p] = four + p < count ? of_position : kMinusInfinity;
        best = fmaxf(best, score[p]);
      }
      const float shrink = most == best ? 1.0f : expf(most - best);
      most = best;
      sum *= shrink;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) out[i] *= shrink;
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        if (four + p >= count) continue;
        const float share = expf(score[p] - best);
        sum += share;
        const float* value = kValuesInKeys ? s.key[four + p] : s.value[kValuesInKeys ? 0 : four + p];
#pragma unroll
        for (int i = 0; i < kSteps; ++i) out[i] = fmaf(share, value[lane + i * kWarp], out[i]);
      }
    }
  }

  if (!active) return;
  const std::int64_t heads = std::int64_t{h.groups} * h.heads;
  float* to = parts + ((token * heads + head) * shape.parts + blockIdx.z) * (h.value_dim + 2);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const int d = lane + i * kWarp;
    if (d < h.value_dim) to[d] = out[i];
  }
  if (lane == 0) {
    to[h.value_dim] = most;
    to[h.value_dim + 1] = sum;
  }
}

template <int kSteps>
constexpr auto kernel_for(bool values_in_keys) {
  return values_in_keys ? attention_kernel<kSteps, true> : attention_kernel<kSteps, false>;
}

}  // namespace

bool attention_takes(const HeadGroups& heads) {
  const bool values_in_keys = heads.first_value == heads.first_key && heads.value_step == heads.key_step;
  return heads.value_dim <= heads.key_dim && heads.key_dim <= (values_in_keys ? kMaxKeyDim : 8 * kWarp);
}

std::int64_t attention_parts(const HeadGroups& heads, std::int64_t tokens, std::int32_t longest) {
  return tokens * heads.groups * heads.heads * ceil_div(longest, kPart) * (heads.value_dim + 2);
}

void attention(Rows<const float> q, const HeadGroups& heads, float scale, const QueryTable& queries,
               std::int32_t longest, const KvLayer& cache, float* parts, Rows<float> out, cudaStream_t stream) {
  if (q.rows == 0) return;
  const bool values_in_keys = heads.first_value == heads.first_key && heads.value_step == heads.key_step;
  const Shape shape{heads, scale, ceil_div(heads.heads, kWarps), ceil_div(longest, kPart)};
  const dim3 grid(static_cast<unsigned>(q.rows), static_cast<unsigned>(heads.groups * shape.head_tiles),
                  static_cast<unsigned>(shape.parts));
  const auto run = [&](auto kernel) {
    launch("attention", kernel, grid, kThreads, stream, q.data, q.stride, shape, queries,
           static_cast<const std::byte*>(cache.data), cache.type, cache.page_tokens, cache.width, parts);
  };
  const int dim = heads.key_dim;
  if (dim <= 2 * kWarp) {
    run(kernel_for<2>(values_in_keys));
  } else if (dim <= 4 * kWarp) {
    run(kernel_for<4>(values_in_keys));
  } else if (dim <= 8 * kWarp) {
    run(kernel_for<8>(values_in_keys));
  } else {  // attention_takes() has seen to it that these are MLA's
    run(attention_kernel<kMaxKeyDim / kWarp, true>);
  }
  merge_parts(parts, kPart, shape.parts, queries.length, heads.value_dim, out, stream);
}

}  // namespace shoal::cuda
