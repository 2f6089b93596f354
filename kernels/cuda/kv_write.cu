#include "kernels/cuda/kv_element.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
static_assert(kKvGroup == kWarp, "a warp rounds one group");

/// Rows into the paged cache, rounded to its type. FP8 and INT8 share a BF16 scale among 32 columns, which the largest
/// magnitude sets; a group with a NaN or an infinity becomes NaN.
///   shape      x [tokens, n] FP32 -> columns column .. column + n of cache rows slots[tokens]
///   grid       a warp for each token and 32 columns; blocks of four warps
///   traffic    576 floats read, 612 (FP8, INT8), 1,152 (BF16) or 2,304 bytes written per token of R1 and layer
///   limit      memory: 128 tokens 0.4 MB; the launch
__global__ void __launch_bounds__(kThreads)
    write_kv_kernel(const float* x, std::int64_t x_stride, int n, const std::int64_t* slots, int column,
                    std::byte* cache, KvType type, int width) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / kWarp;
  const int i = group * kKvGroup + lane;
  if (group * kKvGroup >= n) return;  // the whole warp
  const bool mine = i < n;
  const float value = mine ? x[blockIdx.x * x_stride + i] : 0.0f;
  std::byte* row = cache + slots[blockIdx.x] * kv_row_bytes(type, width);
  if (type == KvType::f32) {
    if (mine) reinterpret_cast<float*>(row)[column + i] = value;
    return;
  }
  if (type == KvType::bf16) {
    if (mine) reinterpret_cast<std::uint16_t*>(row)[column + i] = static_cast<std::uint16_t>(narrow_bf16(value));
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
  if (lane == 0) reinterpret_cast<std::uint16_t*>(row)[column / kKvGroup + group] = static_cast<std::uint16_t>(scale);
  const float unit = widen_bf16(scale), scaled = unit > 0 ? value / unit : 0.0f;
  if (!mine) return;
  const unsigned code =
      type == KvType::fp8 ? narrow_f8(scaled) : static_cast<unsigned>(static_cast<int>(rintf(scaled))) & 0xffu;
  row[2 * kv_groups(width) + column + i] = static_cast<std::byte>(code);
}

}  // namespace

void write_kv(Rows<const float> x, const std::int64_t* slots, int column, const KvLayer& cache, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(ceil_div<std::int64_t>(x.cols, kThreads)));
  launch("write_kv", write_kv_kernel, grid, kThreads, stream, x.data, x.stride, static_cast<int>(x.cols), slots, column,
         static_cast<std::byte*>(cache.data), cache.type, cache.width);
}

}  // namespace shoal::cuda
