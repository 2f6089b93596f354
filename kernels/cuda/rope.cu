#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128;

/// Rotates pairs of columns of each head, in place.
///   shape      x [tokens, heads * head_step] FP32, cos and sin [tokens, pairs]
///   grid       a block for each token and 128 pairs of any of its heads
///   traffic    16 bytes a pair: 64 KB for R1's 128 heads of 32 pairs, per token
///   limit      memory: 128 tokens 8 MB, 1.7 us on H200
__global__ void __launch_bounds__(kThreads)
    rope_kernel(float* x, std::int64_t x_stride, int heads, std::int64_t head_step, const float* cos,
                std::int64_t cos_stride, const float* sin, std::int64_t sin_stride, int pairs, bool interleaved) {
  const std::int64_t token = blockIdx.x;
  const int n = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (n >= heads * pairs) return;
  const int head = n / pairs, i = n % pairs;
  float* at = x + token * x_stride + head * head_step;
  float& first = at[interleaved ? 2 * i : i];
  float& second = at[interleaved ? 2 * i + 1 : i + pairs];
  const float c = cos[token * cos_stride + i], s = sin[token * sin_stride + i], a = first, b = second;
  first = a * c - b * s;
  second = b * c + a * s;
}

}  // namespace

void rope(Rows<float> x, int heads, std::int64_t head_step, const RopeAngles& angles, RopePairing pairing,
          cudaStream_t stream) {
  const auto pairs = static_cast<int>(angles.cos.cols);
  const dim3 grid(static_cast<unsigned>(x.rows), static_cast<unsigned>(ceil_div(heads * pairs, kThreads)));
  launch("rope", rope_kernel, grid, kThreads, stream, x.data, x.stride, heads, head_step, angles.cos.data,
         angles.cos.stride, angles.sin.data, angles.sin.stride, pairs, pairing == RopePairing::interleaved);
}

}  // namespace shoal::cuda
