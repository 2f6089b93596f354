#pragma once
// What kernel sources stand on: CUDA C++ as nvcc compiles it, or the same words for a host compiler
// (base/cuda/emulation).
#include <cstdint>

#ifdef SHOAL_CUDA_EMULATION
#include "base/cuda/emulation/language.h"
#include "base/cuda/emulation/runtime.h"
#else
#include <cuda_runtime.h>

#include "kernels/cuda/kernels_overlap.h"
#endif

namespace shoal::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// Static shared memory of one type. Uninitialised.
template <class T>
__device__ __forceinline__ T& shared() {
#ifdef SHOAL_CUDA_EMULATION
  static const char key = 0;
  return *reinterpret_cast<T*>(emulation::shared_memory(&key, sizeof(T)));
#else
  __shared__ __align__(alignof(T)) unsigned char memory[sizeof(T)];
  return *reinterpret_cast<T*>(memory);
#endif
}

/// Dynamic shared memory, aligned to 1,024 bytes: what launch_with_shared() asked for.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#ifdef SHOAL_CUDA_EMULATION
  return reinterpret_cast<unsigned char*>(emulation::dynamic_shared_memory());
#else
  extern __shared__ __align__(1024) unsigned char dynamic_memory[];
  return dynamic_memory;
#endif
}

/// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

/// The same over a block of kWarps warps, warp after warp, for all of its threads. `of_warp` [kWarps] is shared memory.
template <int kWarps>
__device__ __forceinline__ float block_sum(float x, int warp, int lane, float* of_warp) {
  x = warp_sum(x);
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

/// The sums over a warp of several values, kCount a power of two up to 32, with the same bits as warp_sum(): lanes hand
/// each other the halves that they do not keep, so it takes kCount - 1 exchanges (and one for each further halving of
/// the lanes), not five for each value. The result is of value lane / (32 / kCount).
template <int kCount, int kDistance = kWarp / 2, int kSize>
__device__ __forceinline__ float warp_sums(float (&x)[kSize], int lane) {
  if constexpr (kDistance == 0) {
    return x[0];
  } else if constexpr (kCount == 1) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], kDistance);
    return warp_sums<1, kDistance / 2>(x, lane);
  } else {
    constexpr int kHalf = kCount / 2;
    const bool upper = (lane & kDistance) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float kept = upper ? x[i + kHalf] : x[i], given = upper ? x[i] : x[i + kHalf];
      x[i] = kept + __shfl_xor_sync(kAllLanes, given, kDistance);
    }
    return warp_sums<kHalf, kDistance / 2>(x, lane);
  }
}

/// Kernels of a stream that begin before the one before them has ended (programmatic dependent launch, sm_90 on), so
/// that neither their launch nor what they do before wait_for_previous_kernels() costs time. Every block of every
/// kernel comes there, and until then touches nothing in device memory but weights and what the host has brought: then
/// all that kernels before it wrote is there, and what they read may be overwritten.
__device__ __forceinline__ void wait_for_previous_kernels() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::wait_for_previous_kernels();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel may begin once all blocks have come here or ended, as far as there is room for it.
__device__ __forceinline__ void let_next_kernel_begin() {
#if !defined(SHOAL_CUDA_EMULATION) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// How a kernel begins that has nothing to do before.
__device__ __forceinline__ void follow_previous_kernels() {
  let_next_kernel_begin();
  wait_for_previous_kernels();
}

/// A number that other GPUs of the host, or the host, write and read. What a GPU wrote before store_released() is there
/// for whoever has read the number by load_acquired().
__device__ __forceinline__ void store_released(unsigned* to, unsigned value) {
#ifdef SHOAL_CUDA_EMULATION
  std::atomic_ref(*to).store(value, std::memory_order_release);
#else
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}
__device__ __forceinline__ unsigned load_acquired(const unsigned* from) {
#ifdef SHOAL_CUDA_EMULATION
  return std::atomic_ref(*const_cast<unsigned*>(from)).load(std::memory_order_acquire);
#else
  unsigned value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
#endif
}

/// Starts a kernel, with so many bytes of dynamic shared memory (more than 48 KB, if it asks for them). An empty grid
/// is no work. What goes wrong is told by the next call that waits.
template <class... Parameters, class... Arguments>
void launch_with_shared(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t bytes,
                        cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef SHOAL_CUDA_EMULATION
  emulation::launch(name, kernel, grid, block, bytes, stream, true, arguments...);
#else
  static_cast<void>(name);
  if (bytes > (48 << 10))
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{grid, block, bytes, stream, &overlap, kernels_overlap ? 1u : 0u};
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
#endif
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
            Arguments... arguments) {
  launch_with_shared(name, kernel, grid, block, 0, stream, arguments...);
}

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace shoal::cuda
