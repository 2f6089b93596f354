#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/rounding.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kColumns = 4 * kWarp;  // that a warp takes at a time

struct Call {
  const float* x;
  const float* branch;
  float* sum;
  float* out;
  std::int64_t x_stride, branch_stride, sum_stride, out_stride, width;
  const float* weight;
  float eps;
  bool vectors;  // rows begin at multiples of 16 bytes and have whole ones
};

__device__ __forceinline__ void load_four(const float* row, std::int64_t c, const Call& call, float (&x)[4]) {
  if (call.vectors) {
    const bool there = c < call.width;
    const float4 v = there ? *reinterpret_cast<const float4*>(row + c) : make_float4(0, 0, 0, 0);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = c + i < call.width ? row[c + i] : 0.0f;
}
__device__ __forceinline__ void store_four(float* row, std::int64_t c, const Call& call, const float (&x)[4]) {
  if (call.vectors) {
    if (c < call.width) *reinterpret_cast<float4*>(row + c) = make_float4(x[0], x[1], x[2], x[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (c + i < call.width) row[c + i] = x[i];
}

/// sum = x + branch (where there is one); out = sum / sqrt(mean(sum^2) + eps) * weight, a row at a time; and the same
/// rounded as products take it, where they do.
///   shape      x, branch, sum, out [tokens, width] FP32, weight [width] FP32; out and sum may be x; rounded: BF16,
///              bytes with a scale for 32 columns, or E4M3 tiles with one for 128
///   grid       a block of 256 threads for each token; a warp takes 128 columns at a time, a lane four of them
///   traffic    x twice (the second time from L1 or L2), out written, a byte or two an element rounded: 57 KB of HBM a
///              token at width 7168, 114 KB with a branch
///   limit      memory: 128 tokens 7.3 MB, 1.5 us on H200; with a branch and E4M3 15.6 MB, 3.2 us
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(Call call, Rounded to) {
  follow_previous_kernels();
  struct Shared {
    float of_warp[kWarps];
  };
  Shared& s = shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const std::int64_t token = blockIdx.x;
  const float* row = call.x + token * call.x_stride;
  float squares = 0;
  for (std::int64_t c = warp * kColumns + lane * 4; c < call.width; c += kWarps * kColumns) {
    float x[4];
    load_four(row, c, call, x);
    if (call.branch != nullptr) {
      float more[4];
      load_four(call.branch + token * call.branch_stride, c, call, more);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] += more[i];
      store_four(call.sum + token * call.sum_stride, c, call, x);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) squares = fmaf(x[i], x[i], squares);
  }
  const float sum = block_sum<kWarps>(squares, warp, lane, s.of_warp);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(call.width) + call.eps);
  if (call.branch != nullptr) row = call.sum + token * call.sum_stride;  // what this thread has written
  for (std::int64_t first = warp * kColumns; first < call.width; first += kWarps * kColumns) {  // the whole warp
    const std::int64_t c = first + lane * 4;
    float x[4], w[4];
    load_four(row, c, call, x);
    load_four(call.weight, c, call, w);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = x[i] * scale * w[i];
    store_four(call.out + token * call.out_stride, c, call, x);
    if (to.halves.value != nullptr && c < to.halves.stride)
      store_halves(to.halves.value + token * to.halves.stride + c, x);
    if (to.bytes.value != nullptr) store_bytes(to.bytes, token * call.width + c, x, c < call.width, lane);
    if (to.f8.value != nullptr)
      store_f8(to.f8, token / to.f8_tile_rows, static_cast<int>(first / kColumns), to.f8_tile_rows,
               static_cast<int>(token % to.f8_tile_rows), round_f8(x), lane);
  }
}

}  // namespace

void rms_norm(Rows<const float> x, const float* weight, float eps, Rows<float> out, cudaStream_t stream) {
  add_rms_norm(x, {}, {}, weight, eps, out, {}, stream);
}

void add_rms_norm(Rows<const float> x, Rows<const float> branch, Rows<float> sum, const float* weight, float eps,
                  Rows<float> out, const Rounded& rounded, cudaStream_t stream) {
  const auto whole = [](const float* data, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
  };
  const bool adds = branch.cols > 0;
  const Call call{x.data,
                  adds ? branch.data : nullptr,
                  adds ? sum.data : nullptr,
                  out.data,
                  x.stride,
                  branch.stride,
                  sum.stride,
                  out.stride,
                  x.cols,
                  weight,
                  eps,
                  x.cols % 4 == 0 && whole(x.data, x.stride) && whole(out.data, out.stride) && whole(weight, 4) &&
                      (!adds || (whole(branch.data, branch.stride) && whole(sum.data, sum.stride)))};
  launch("rms_norm", rms_norm_kernel, static_cast<unsigned>(x.rows), kThreads, stream, call, rounded);
}

}  // namespace shoal::cuda
