#include <type_traits>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/rounding.h"

// Rows on their way between ranks. All kernels are bound by memory: 5 to 8 bytes an element.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kGroup = kF8Tile;  // columns of E4M3 that share a scale, a warp's share of a row

/// A block has 256 columns of a row; of E4M3 eight groups.
template <Wire kWire>
dim3 grid_over(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kColumns = kWire == Wire::f8 ? kWarps * kGroup : kThreads;
  return {static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div<std::int64_t>(cols, kColumns))};
}
__device__ __forceinline__ std::int64_t column() { return std::int64_t{blockIdx.y} * kThreads + threadIdx.x; }

/// The group of a row that this warp has: its columns c to c + 3 in each lane.
struct Group {
  std::int64_t number, c;
  __device__ __forceinline__ Group()
      : number(std::int64_t{blockIdx.y} * kWarps + static_cast<int>(threadIdx.x) / kWarp),
        c(number * kGroup + static_cast<int>(threadIdx.x) % kWarp * 4) {}
  __device__ __forceinline__ FourF8 round(const float* x, std::int64_t cols) const {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = c + i < cols ? x[c + i] : 0.0f;
    return round_f8(value);
  }
  __device__ __forceinline__ void widen(const FourF8& from, float* x, std::int64_t cols) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i < cols) x[c + i] = widen_f8(from.codes >> (8 * i) & 0xffu) * from.scale;
  }
  /// Where a row that travels has its scale: behind the codes of whole groups.
  __device__ __forceinline__ std::int64_t scale_at(std::int64_t cols) const {
    return ceil_div<std::int64_t>(cols, kGroup) * kGroup + number * 4;
  }
};

/// out[i] = x[row[i]], or x[i], as it travels.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    pack_rows_kernel(Rows<const float> x, const std::int32_t* row, std::byte* out) {
  follow_previous_kernels();
  const std::int64_t i = blockIdx.x;
  const float* from = x.data + (row == nullptr ? i : row[i]) * x.stride;
  out += i * wire_row_bytes(kWire, x.cols);
  if constexpr (kWire == Wire::f8) {
    const Group group;
    if (group.number * kGroup >= x.cols) return;  // the whole warp
    const FourF8 four = group.round(from, x.cols);
    *reinterpret_cast<unsigned*>(out + group.c) = four.codes;
    if (threadIdx.x % kWarp == 0) *reinterpret_cast<float*>(out + group.scale_at(x.cols)) = four.scale;
  } else {
    const std::int64_t c = column();
    if (c >= x.cols) return;
    if constexpr (kWire == Wire::bf16)
      reinterpret_cast<std::uint16_t*>(out)[c] = static_cast<std::uint16_t>(narrow_bf16(from[c]));
    else
      reinterpret_cast<float*>(out)[c] = from[c];
  }
}

/// out[i] = x[row[i]] as it would arrive, had it travelled.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads)
    keep_rows_kernel(Rows<const float> x, const std::int32_t* row, Rows<float> out) {
  follow_previous_kernels();
  const float* from = x.data + row[blockIdx.x] * x.stride;
  float* to = out.data + blockIdx.x * out.stride;
  if constexpr (kWire == Wire::f8) {
    const Group group;
    if (group.number * kGroup < x.cols) group.widen(group.round(from, x.cols), to, x.cols);
  } else {
    const std::int64_t c = column();
    if (c < x.cols) to[c] = kWire == Wire::bf16 ? round_bf16(from[c]) : from[c];
  }
}

/// out = what arrived, of BF16 or E4M3.
template <Wire kWire>
__global__ void __launch_bounds__(kThreads) unpack_rows_kernel(const std::byte* in, Rows<float> out) {
  follow_previous_kernels();
  float* to = out.data + blockIdx.x * out.stride;
  in += blockIdx.x * wire_row_bytes(kWire, out.cols);
  if constexpr (kWire == Wire::f8) {
    const Group group;
    if (group.number * kGroup >= out.cols) return;
    group.widen({*reinterpret_cast<const unsigned*>(in + group.c),
                 *reinterpret_cast<const float*>(in + group.scale_at(out.cols))},
                to, out.cols);
  } else {
    const std::int64_t c = column();
    if (c < out.cols) to[c] = widen_bf16(reinterpret_cast<const std::uint16_t*>(in)[c]);
  }
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

/// run(a Wire) with the wire known to the compiler.
template <class Run>
void with_wire(Wire wire, const Run& run) {
  if (wire == Wire::f32) return run(std::integral_constant<Wire, Wire::f32>());
  if (wire == Wire::bf16) return run(std::integral_constant<Wire, Wire::bf16>());
  run(std::integral_constant<Wire, Wire::f8>());
}

}  // namespace

void pack_rows(Rows<const float> x, const std::int32_t* row, std::int64_t n, Wire wire, std::byte* out,
               cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("pack_rows", pack_rows_kernel<kWire>, grid_over<kWire>(n, x.cols), kThreads, stream, x, row, out);
  });
}

void keep_rows(Rows<const float> x, const std::int32_t* row, Wire wire, Rows<float> out, cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    launch("keep_rows", keep_rows_kernel<kWire>, grid_over<kWire>(out.rows, out.cols), kThreads, stream, x, row, out);
  });
}

void unpack_rows(const std::byte* in, Wire wire, Rows<float> out, cudaStream_t stream) {
  with_wire(wire, [&]<Wire kWire>(std::integral_constant<Wire, kWire>) {
    if constexpr (kWire != Wire::f32)
      launch("unpack_rows", unpack_rows_kernel<kWire>, grid_over<kWire>(out.rows, out.cols), kThreads, stream, in, out);
  });
}

void add_answers(Rows<const float> own, const std::byte* others, Wire wire, const std::int32_t* first,
                 const std::int32_t* place, Rows<float> out, cudaStream_t stream) {
  const dim3 grid = grid_over<Wire::f32>(out.rows, out.cols);
  launch("add_answers", wire == Wire::bf16 ? add_answers_kernel<true> : add_answers_kernel<false>, grid, kThreads,
         stream, own, others, first, place, out);
}

}  // namespace shoal::cuda
