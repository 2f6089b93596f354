#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128;

/// Rotates pairs of columns of each head, in place or on the way to another spacing.
///   shape      x [tokens, heads * x_step] FP32, cos and sin [tokens, pairs] -> out [tokens, heads * out_step]
///   grid       a block for each token and 128 pairs of any of its heads
///   traffic    16 bytes a pair: 64 KB for R1's 128 heads of 32 pairs, per token
///   limit      memory: 128 tokens 8 MB, 1.7 us on H200
struct Heads {
  std::int64_t stride, step;
};
__global__ void __launch_bounds__(kThreads)
    rope_kernel(const float* x, Heads from, int heads, const float* cos, std::int64_t cos_stride, const float* sin,
                std::int64_t sin_stride, int pairs, bool interleaved, float* out, Heads to) {
  follow_previous_kernels();
  const std::int64_t token = blockIdx.x;
  const int n = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (n >= heads * pairs) return;
  const int head = n / pairs, i = n % pairs;
  const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + pairs;
  const float* at = x + token * from.stride + head * from.step;
  const float c = cos[token * cos_stride + i], s = sin[token * sin_stride + i], a = at[first], b = at[second];
  float* result = out + token * to.stride + head * to.step;
  result[first] = a * c - b * s;
  result[second] = b * c + a * s;
}

}  // namespace

void rope(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles, RopePairing pairing,
          Rows<float> out, std::int64_t out_step, cudaStream_t stream) {
  const auto pairs = static_cast<int>(angles.cos.cols);
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(ceil_div(heads * pairs, kThreads)));
  launch("rope", rope_kernel, grid, kThreads, stream, x.data, Heads{x.stride, x_step}, heads, angles.cos.data,
         angles.cos.stride, angles.sin.data, angles.sin.stride, pairs, pairing == RopePairing::interleaved, out.data,
         Heads{out.stride, out_step});
}

}  // namespace shoal::cuda
