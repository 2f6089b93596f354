#pragma once
#include <type_traits>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/rounding.h"

// A row on its way between ranks, as blocks of kWireThreads threads write and read it: 256 columns each, of E4M3 eight
// groups of 128, a warp's share each. 5 to 8 bytes an element, which bound all kernels that do nothing else.
namespace shoal::cuda {

constexpr int kWireThreads = 256;

/// The columns of a row that this thread has, in block blockIdx.y of it.
template <Wire kWire>
struct WireColumns {
  std::int64_t c = std::int64_t{blockIdx.y} * kWireThreads + threadIdx.x;

  /// They as they travel, to be put into any number of rows.
  using Held = std::conditional_t<kWire == Wire::bf16, std::uint16_t, float>;
  __device__ __forceinline__ static Held narrow(float value) {
    if constexpr (kWire == Wire::bf16)
      return static_cast<std::uint16_t>(narrow_bf16(value));
    else
      return value;
  }
  __device__ __forceinline__ Held round(const float* from, std::int64_t cols) const {
    return narrow(c < cols ? from[c] : 0.0f);
  }
  __device__ __forceinline__ void put(Held held, std::int64_t cols, std::byte* row) const {
    if (c < cols) reinterpret_cast<Held*>(row)[c] = held;
  }
  /// Of a row that has such a column.
  __device__ __forceinline__ float at(const std::byte* row) const {
    if constexpr (kWire == Wire::bf16)
      return widen_bf16(reinterpret_cast<const std::uint16_t*>(row)[c]);
    else
      return reinterpret_cast<const float*>(row)[c];
  }
  __device__ __forceinline__ void load(const std::byte* row, std::int64_t cols, float* to) const {
    if (c < cols) to[c] = at(row);
  }
  /// What at() would give had the value travelled.
  __device__ __forceinline__ static float travelled(float value) {
    return kWire == Wire::bf16 ? round_bf16(value) : value;
  }
  __device__ __forceinline__ void keep(const float* from, std::int64_t cols, float* to) const {
    if (c < cols) to[c] = travelled(from[c]);
  }
  __device__ __forceinline__ void clear(std::int64_t cols, float* to) const {
    if (c < cols) to[c] = 0.0f;
  }
};

template <>
struct WireColumns<Wire::f8> {
  static constexpr int kGroup = kF8Tile, kGroups = kWireThreads / kWarp;
  std::int64_t group = std::int64_t{blockIdx.y} * kGroups + static_cast<int>(threadIdx.x) / kWarp;  // the warp's
  std::int64_t c = group * kGroup + static_cast<int>(threadIdx.x) % kWarp * 4;

  using Held = FourF8;
  __device__ __forceinline__ Held round(const float* from, std::int64_t cols) const {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] = c + i < cols ? from[c + i] : 0.0f;
    return round_f8(value);
  }
  __device__ __forceinline__ void put(const Held& held, std::int64_t cols, std::byte* row) const {
    if (group * kGroup >= cols) return;  // the whole warp
    *reinterpret_cast<unsigned*>(row + c) = held.codes;
    if (threadIdx.x % kWarp == 0) *reinterpret_cast<float*>(row + scale_at(cols)) = held.scale;
  }
  __device__ __forceinline__ void load(const std::byte* row, std::int64_t cols, float* to) const {
    if (group * kGroup >= cols) return;
    widen({*reinterpret_cast<const unsigned*>(row + c), *reinterpret_cast<const float*>(row + scale_at(cols))}, to,
          cols);
  }
  __device__ __forceinline__ void keep(const float* from, std::int64_t cols, float* to) const {
    if (group * kGroup < cols) widen(round(from, cols), to, cols);
  }
  __device__ __forceinline__ void clear(std::int64_t cols, float* to) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i < cols) to[c + i] = 0.0f;
  }

 private:
  __device__ __forceinline__ void widen(const FourF8& from, float* x, std::int64_t cols) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i < cols) x[c + i] = widen_f8(from.codes >> (8 * i) & 0xffu) * from.scale;
  }
  /// Behind the codes of whole groups.
  __device__ __forceinline__ std::int64_t scale_at(std::int64_t cols) const {
    return ceil_div<std::int64_t>(cols, kGroup) * kGroup + group * 4;
  }
};

/// A grid for so many rows.
inline dim3 wire_grid(Wire wire, std::int64_t rows, std::int64_t cols) {
  const std::int64_t of_block = wire == Wire::f8 ? WireColumns<Wire::f8>::kGroups * kF8Tile : kWireThreads;
  return {static_cast<unsigned>(rows), static_cast<unsigned>(ceil_div(cols, of_block))};
}

/// run(a Wire) with the wire known to the compiler.
template <class Run>
void with_wire(Wire wire, const Run& run) {
  if (wire == Wire::f32) return run(std::integral_constant<Wire, Wire::f32>());
  if (wire == Wire::bf16) return run(std::integral_constant<Wire, Wire::bf16>());
  run(std::integral_constant<Wire, Wire::f8>());
}
/// The same of answers, which travel in FP32 or BF16.
template <class Run>
void with_answers(Wire wire, const Run& run) {
  if (wire == Wire::bf16) return run(std::integral_constant<Wire, Wire::bf16>());
  run(std::integral_constant<Wire, Wire::f32>());
}

}  // namespace shoal::cuda
