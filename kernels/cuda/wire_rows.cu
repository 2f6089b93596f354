#include "kernels/cuda/convert.h"
#include "kernels/cuda/operations.h"

// Rows on their way between ranks: FP32, or BF16. All are bound by memory; a block is 256 columns of a row.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

dim3 grid_over(std::int64_t rows, std::int64_t cols) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div<std::int64_t>(cols, kThreads))};
}
__device__ __forceinline__ std::int64_t column() { return std::int64_t{blockIdx.y} * kThreads + threadIdx.x; }

/// out[i] = x[row[i]], or x[i], as it travels. 8 bytes an element, or 6 in BF16.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads) pack_rows_kernel(Rows<const float> x, const std::int32_t* row, std::byte* out) {
  follow_previous_kernels();
  const std::int64_t c = column(), i = blockIdx.x;
  if (c >= x.cols) return;
  const float value = x.data[(row == nullptr ? i : row[i]) * x.stride + c];
  if constexpr (kBf16)
    reinterpret_cast<std::uint16_t*>(out)[i * x.cols + c] = static_cast<std::uint16_t>(narrow_bf16(value));
  else
    reinterpret_cast<float*>(out)[i * x.cols + c] = value;
}

/// What of x[row[i]] would arrive, had it travelled in BF16.
__global__ void __launch_bounds__(kThreads)
    round_own_rows_kernel(Rows<const float> x, const std::int32_t* row, Rows<float> out) {
  follow_previous_kernels();
  const std::int64_t c = column(), i = blockIdx.x;
  if (c < x.cols) out.data[i * out.stride + c] = round_bf16(x.data[row[i] * x.stride + c]);
}

__global__ void __launch_bounds__(kThreads) unpack_rows_kernel(const std::uint16_t* in, Rows<float> out) {
  follow_previous_kernels();
  const std::int64_t c = column(), i = blockIdx.x;
  if (c < out.cols) out.data[i * out.stride + c] = widen_bf16(in[i * out.cols + c]);
}

/// out[t] += the answers place[first[t]] .. place[first[t + 1]], in this order: one that came from another rank, as it
/// travelled, or (~n) row n of this rank's own.
///   traffic    each answer once, out twice: of an R1 token with answers of four ranks 172 KB, or 115 in BF16
template <bool kBf16>
__global__ void __launch_bounds__(kThreads)
    add_answers_kernel(Rows<const float> own, const std::byte* others, const std::int32_t* first,
                       const std::int32_t* place, Rows<float> out) {
  follow_previous_kernels();
  const std::int64_t c = column(), t = blockIdx.x;
  if (c >= out.cols) return;
  float sum = out.data[t * out.stride + c];
  for (std::int32_t a = first[t]; a < first[t + 1]; ++a) {
    const std::int64_t at = place[a];
    if (at < 0) {
      const float answer = own.data[~at * own.stride + c];
      sum += kBf16 ? round_bf16(answer) : answer;
    } else if constexpr (kBf16) {
      sum += widen_bf16(reinterpret_cast<const std::uint16_t*>(others)[at * out.cols + c]);
    } else {
      sum += reinterpret_cast<const float*>(others)[at * out.cols + c];
    }
  }
  out.data[t * out.stride + c] = sum;
}

}  // namespace

void pack_rows(Rows<const float> x, const std::int32_t* row, std::int64_t n, bool bf16, std::byte* out,
               cudaStream_t stream) {
  launch("pack_rows", bf16 ? pack_rows_kernel<true> : pack_rows_kernel<false>, grid_over(n, x.cols), kThreads, stream,
         x, row, out);
}

void round_own_rows(Rows<const float> x, const std::int32_t* row, Rows<float> out, cudaStream_t stream) {
  launch("round_own_rows", round_own_rows_kernel, grid_over(out.rows, out.cols), kThreads, stream, x, row, out);
}

void unpack_rows(const std::uint16_t* in, Rows<float> out, cudaStream_t stream) {
  launch("unpack_rows", unpack_rows_kernel, grid_over(out.rows, out.cols), kThreads, stream, in, out);
}

void add_answers(Rows<const float> own, const std::byte* others, bool bf16, const std::int32_t* first,
                 const std::int32_t* place, Rows<float> out, cudaStream_t stream) {
  launch("add_answers", bf16 ? add_answers_kernel<true> : add_answers_kernel<false>, grid_over(out.rows, out.cols),
         kThreads, stream, own, others, first, place, out);
}

}  // namespace shoal::cuda
