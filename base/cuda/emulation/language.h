#pragma once
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <type_traits>

#include "base/cuda/emulation/block.h"

// The words of CUDA C++ that kernels use, for a host compiler: so one kernel source serves nvcc and g++.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::shoal::emulation::position().thread)
#define blockIdx (::shoal::emulation::position().block)
#define blockDim (::shoal::emulation::position().block_dim)
#define gridDim (::shoal::emulation::position().grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads(shoal::emulation::Where where = shoal::emulation::Where::current()) {
  shoal::emulation::barrier(0, shoal::emulation::threads_in_block(), where);
}
inline void __syncwarp(unsigned mask = ~0u, shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const char nothing = 0;
  shoal::emulation::meet_warp(mask, &nothing, 1, where);
}

namespace shoal::emulation {
inline unsigned lane() { return position().linear % 32; }
/// What `source` brought; the own value where the block has no such lane.
template <class T>
T from_lane(unsigned mask, T value, unsigned source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  const unsigned present = threads_in_block() - position().linear / 32 * 32;
  const std::byte* all = meet_warp(mask, &value, sizeof value, where);
  if (source >= 32 || source >= present || !(mask >> source & 1u)) return value;
  T brought;
  std::memcpy(&brought, all + source * kLaneBytes, sizeof brought);
  return brought;
}
/// combine(a, b) over the values of all lanes in the mask.
template <class T, class Combine>
T over_lanes(unsigned mask, T value, const Combine& combine, Where where) {
  const unsigned present = threads_in_block() - position().linear / 32 * 32;
  const std::byte* all = meet_warp(mask, &value, sizeof value, where);
  bool first = true;
  T result{};
  for (unsigned l = 0; l < 32 && l < present; ++l) {
    if (!(mask >> l & 1u)) continue;
    T brought;
    std::memcpy(&brought, all + l * kLaneBytes, sizeof brought);
    result = first ? brought : combine(result, brought);
    first = false;
  }
  return result;
}
}  // namespace shoal::emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const unsigned base = shoal::emulation::lane() / static_cast<unsigned>(width) * static_cast<unsigned>(width);
  return shoal::emulation::from_lane(mask, value, base + static_cast<unsigned>(source % width), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32,
                  shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const unsigned me = shoal::emulation::lane(), source = me ^ static_cast<unsigned>(distance);
  const bool inside = source / static_cast<unsigned>(width) == me / static_cast<unsigned>(width);
  return shoal::emulation::from_lane(mask, value, inside ? source : me, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const unsigned me = shoal::emulation::lane();
  const bool inside = me % static_cast<unsigned>(width) >= distance;
  return shoal::emulation::from_lane(mask, value, inside ? me - distance : me, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const unsigned me = shoal::emulation::lane();
  const bool inside = me % static_cast<unsigned>(width) + distance < static_cast<unsigned>(width);
  return shoal::emulation::from_lane(mask, value, inside ? me + distance : me, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              shoal::emulation::Where where = shoal::emulation::Where::current()) {
  const unsigned mine = predicate ? 1u << shoal::emulation::lane() : 0u;
  return shoal::emulation::over_lanes(
      mask, mine, [](unsigned a, unsigned b) { return a | b; }, where);
}

template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}

template <class T>
T atomicOr(T* to, T value) {
  const T before = *to;
  *to = before | value;
  return before;
}

template <class T>
T atomicMin(T* to, T value) {
  const T before = *to;
  *to = value < before ? value : before;
  return before;
}

inline void __threadfence() {}
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }
/// Other GPUs are other threads.
inline void __nanosleep(unsigned) { std::this_thread::yield(); }
template <class T>
T __ldcg(const T* from) {
  return *from;
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
constexpr int min(int a, int b) { return a < b ? a : b; }
constexpr int max(int a, int b) { return a > b ? a : b; }
