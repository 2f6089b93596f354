#pragma once
#include "kernels/cuda/convert.h"

// What sm_90 has and others do not: barriers that count bytes, bulk copies by the copy engine, and products of a whole
// warp group that read shared memory (wgmma). One function an instruction, or its emulation after the PTX ISA's
// description.
namespace shoal::cuda::sm90 {

using MemoryBarrier = std::uint64_t;

__device__ __forceinline__ unsigned shared_address(const void* p) {
#ifdef SHOAL_CUDA_EMULATION
  return static_cast<unsigned>(static_cast<const unsigned char*>(p) - dynamic_shared());
#else
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
#endif
}

__device__ __forceinline__ void barrier_init(MemoryBarrier* barrier, unsigned arrivals) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::mbarrier_init(barrier, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}
/// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void fence_barrier_init() {
#ifndef SHOAL_CUDA_EMULATION
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(MemoryBarrier* barrier) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::mbarrier_arrive(barrier, 0, emulation::Where::current());
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}
/// Arrives, and the phase waits for so many bytes as well.
__device__ __forceinline__ void barrier_arrive_expecting(MemoryBarrier* barrier, unsigned bytes) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::mbarrier_arrive(barrier, bytes, emulation::Where::current());
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
/// Until the phase of this parity is complete; the first phase has parity 0.
__device__ __forceinline__ void barrier_wait(MemoryBarrier* barrier, unsigned parity) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::mbarrier_wait(barrier, parity, emulation::Where::current());
#else
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

/// Bytes (a multiple of 16, all addresses too) into shared memory; the barrier counts them.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, unsigned bytes, MemoryBarrier* barrier) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::copy_bulk(to, from, bytes, barrier);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

/// Registers of a thread from here on, for the whole warp group.
template <int kCount>
__device__ __forceinline__ void give_registers_up() {
#ifndef SHOAL_CUDA_EMULATION
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
#ifndef SHOAL_CUDA_EMULATION
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

/// How wgmma finds an operand of rows of 128 bytes in shared memory, eight rows in 1,024 bytes, with 128-byte swizzle:
/// address / 16 in bits 0-13, the stride between groups of eight rows / 16 in bits 32-45, the swizzle's number in
/// 62-63.
__device__ __forceinline__ std::uint64_t swizzled_operand(const void* p) {
  constexpr std::uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return static_cast<std::uint64_t>((shared_address(p) & 0x3ffffu) >> 4) | std::uint64_t{1} << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

#ifdef SHOAL_CUDA_EMULATION
/// Byte `k` of row `row` of an operand.
inline unsigned operand_byte(std::uint64_t operand, unsigned row, unsigned k) {
  const auto start = static_cast<unsigned>(operand & 0x3fffu) << 4;
  const auto stride = static_cast<unsigned>(operand >> 32 & 0x3fffu) << 4;
  const unsigned at = start + row / 8 * stride + row % 8 * 128 + k;
  return dynamic_shared()[at ^ ((at >> 7 & 7u) << 4)];
}
#endif

/// Registers that wgmma works on must not move between these.
__device__ __forceinline__ void wgmma_fence() {
#ifndef SHOAL_CUDA_EMULATION
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::commit_deferred();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Until no more than the last kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::wait_deferred(kPending);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

#define SHOAL_EIGHT(d, i)                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])

/// d = a b^T (+ d where `add`) by a warp group of 128 threads: a [64, 32] and b [kColumns, 32] E4M3 in shared memory, d
/// FP32. Of thread t: d[v] is row 16 (t / 32) + t % 32 / 4 + 8 (v / 2 % 2), column 2 (t % 4) + v % 2 + 8 (v / 4).
template <int kColumns>
__device__ __forceinline__ void wgmma_f8(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(kColumns == 16 || kColumns == 64);
#ifdef SHOAL_CUDA_EMULATION
  float* to = d;
  const unsigned t = threadIdx.x % 128;
  emulation::defer([=] {
    for (unsigned v = 0; v < kColumns / 2; ++v) {
      const unsigned row = 16 * (t / 32) + t % 32 / 4 + 8 * (v / 2 % 2), column = 2 * (t % 4) + v % 2 + 8 * (v / 4);
      float sum = add ? to[v] : 0.0f;
      for (unsigned k = 0; k < 32; ++k) sum += widen_f8(operand_byte(a, row, k)) * widen_f8(operand_byte(b, column, k));
      to[v] = sum;
    }
  });
#else
  if constexpr (kColumns == 16) {
    asm volatile(
        "{\n.reg .pred sums;\nsetp.ne.b32 sums, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, sums, 1, "
        "1;\n}\n"
        : SHOAL_EIGHT(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  } else {
    asm volatile(
        "{\n.reg .pred sums;\nsetp.ne.b32 sums, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, "
        "sums, "
        "1, 1;\n}\n"
        : SHOAL_EIGHT(d, 0), SHOAL_EIGHT(d, 8), SHOAL_EIGHT(d, 16), SHOAL_EIGHT(d, 24)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
#endif
}

#undef SHOAL_EIGHT

}  // namespace shoal::cuda::sm90
