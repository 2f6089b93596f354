#pragma once
#include "kernels/cuda/device.h"

namespace shoal::cuda {

/// sum + the dot product of four unsigned bytes with four signed ones, exact.
__device__ __forceinline__ int dot_unsigned_signed(unsigned a, unsigned b, int sum) {
#ifdef SHOAL_CUDA_EMULATION
  for (int i = 0; i < 4; ++i)
    sum += static_cast<int>(a >> (8 * i) & 0xffu) * static_cast<int>(static_cast<std::int8_t>(b >> (8 * i) & 0xffu));
  return sum;
#else
  int result;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
  return result;
#endif
}

}  // namespace shoal::cuda
