#include "kernels/cuda/kv_element.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
static_assert(kKvGroup == kWarp, "a warp rounds one group");

/// A warp's 32 columns, `value` of column `column` + the lane; `mine`: whether the row has this one.
__device__ __forceinline__ void write_group(float value, bool mine, std::byte* row, int column, KvType type, int width,
                                            int lane) {
  if (type == KvType::f32) {
    if (mine) reinterpret_cast<float*>(row)[column + lane] = value;
    return;
  }
  if (type == KvType::bf16) {
    if (mine) reinterpret_cast<std::uint16_t*>(row)[column + lane] = static_cast<std::uint16_t>(narrow_bf16(value));
    return;
  }

  float largest = fabsf(value);
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
  const bool finite = __ballot_sync(kAllLanes, !is_finite(value)) == 0;
  // The least BF16 that is not below what the group needs.
  const float needed = largest / (type == KvType::fp8 ? 448.0f : 127.0f);
  const unsigned scale = finite ? (__float_as_uint(needed) + 0xffffu) >> 16 : 0x7fc0u;
  if (lane == 0) reinterpret_cast<std::uint16_t*>(row)[column / kKvGroup] = static_cast<std::uint16_t>(scale);
  const float unit = widen_bf16(scale), scaled = unit > 0 ? value / unit : 0.0f;
  if (!mine) return;
  const unsigned code =
      type == KvType::fp8 ? narrow_f8(scaled) : static_cast<unsigned>(static_cast<int>(rintf(scaled))) & 0xffu;
  row[2 * kv_groups(width) + column + lane] = static_cast<std::byte>(code);
}

/// Rows into the paged cache, rounded to its type. FP8 and INT8 share a BF16 scale among 32 columns, which the largest
/// magnitude sets; a group with a NaN or an infinity becomes NaN.
///   shape      x [tokens, n] FP32 -> columns column .. column + n of cache rows slots[tokens]
///   grid       a warp for each token and 32 columns; blocks of four warps
///   traffic    576 floats read, 612 (FP8, INT8), 1,152 (BF16) or 2,304 bytes written per token of R1 and layer
///   limit      memory: 128 tokens 0.4 MB; the launch
__global__ void __launch_bounds__(kThreads)
    write_kv_kernel(const float* x, std::int64_t x_stride, int n, const std::int64_t* slots, int column,
                    std::byte* cache, KvType type, int width) {
  follow_previous_kernels();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first = (static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kKvGroup;
  if (first >= n) return;  // the whole warp
  const bool mine = first + lane < n;
  const float value = mine ? x[blockIdx.x * x_stride + first + lane] : 0.0f;
  write_group(value, mine, cache + slots[blockIdx.x] * kv_row_bytes(type, width), column + first, type, width, lane);
}

/// MLA's rows into the paged cache: the latent normed, the key behind it rotated.
///   shape      x [tokens, width] FP32, weight [rank], cos and sin [tokens, (width - rank) / 2] -> cache rows
///   precision  as norm.cu and rope.cu, then as above
///   grid       a block of eight warps for each token; a warp takes 32 columns at a time
///   traffic    2.3 KB read, 0.6 to 2.3 KB written per token of R1 and layer
///   limit      the launch, which replaces three
constexpr int kLatentThreads = 256, kLatentWarps = kLatentThreads / kWarp;
struct Latent {
  const float* x;
  std::int64_t stride;
  int rank;
  const float* weight;
  float eps;
  const float* cos;
  const float* sin;
  std::int64_t cos_stride, sin_stride;
  bool interleaved;
};
__global__ void __launch_bounds__(kLatentThreads)
    write_latent_kernel(Latent in, const std::int64_t* slots, std::byte* cache, KvType type, int width) {
  follow_previous_kernels();
  struct Shared {
    float of_warp[kLatentWarps];
  };
  Shared& s = shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t token = blockIdx.x;
  const float* x = in.x + token * in.stride;
  float squares = 0;
  for (int c = thread; c < in.rank; c += kLatentThreads) squares = fmaf(x[c], x[c], squares);
  const float sum = block_sum<kLatentWarps>(squares, warp, lane, s.of_warp);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(in.rank) + in.eps);

  std::byte* row = cache + slots[token] * kv_row_bytes(type, width);
  const int pairs = (width - in.rank) / 2;
  for (int first = warp * kKvGroup; first < width; first += kLatentWarps * kKvGroup) {  // the whole warp
    const int c = first + lane;
    float value = 0;
    if (c < in.rank) {
      value = x[c] * scale * in.weight[c];
    } else if (c < width) {
      const int r = c - in.rank, pair = in.interleaved ? r / 2 : r % pairs;
      const bool second = in.interleaved ? r % 2 == 1 : r >= pairs;
      const int other = in.rank + (in.interleaved ? r ^ 1 : second ? r - pairs : r + pairs);
      const float cosine = in.cos[token * in.cos_stride + pair], sine = in.sin[token * in.sin_stride + pair];
      value = second ? x[c] * cosine + x[other] * sine : x[c] * cosine - x[other] * sine;
    }
    write_group(value, c < width, row, first, type, width, lane);
  }
}

}  // namespace

void write_kv(Rows<const float> x, const std::int64_t* slots, int column, const KvLayer& cache, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(ceil_div<std::int64_t>(x.cols, kThreads)));
  launch("write_kv", write_kv_kernel, grid, kThreads, stream, x.data, x.stride, static_cast<int>(x.cols), slots, column,
         static_cast<std::byte*>(cache.data), cache.type, cache.width);
}

void write_latent(Rows<const float> x, int rank, const float* weight, float eps, const RopeAngles& angles,
                  RopePairing pairing, const std::int64_t* slots, const KvLayer& cache, cudaStream_t stream) {
  const Latent in{x.data,
                  x.stride,
                  rank,
                  weight,
                  eps,
                  angles.cos.data,
                  angles.sin.data,
                  angles.cos.stride,
                  angles.sin.stride,
                  pairing == RopePairing::interleaved};
  launch("write_latent", write_latent_kernel, static_cast<unsigned>(x.rows), kLatentThreads, stream, in, slots,
         static_cast<std::byte*>(cache.data), cache.type, cache.width);
}

}  // namespace shoal::cuda
