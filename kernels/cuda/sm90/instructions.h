#pragma once
#ifdef SHOAL_CUDA_EMULATION
#include <array>
#endif

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

/// Until kThreads threads of the block, whole warps, have come here; kId: 1 to 15, 0 is __syncthreads().
template <int kId, int kThreads>
__device__ __forceinline__ void named_barrier() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::barrier(kId, kThreads, emulation::Where::current());
#else
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
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

/// Where a byte of a row of 128 bytes lies, with 128-byte swizzle.
__device__ __forceinline__ int swizzled(int row, int byte) {
  return row * 128 + ((byte / 16 ^ row % 8) * 16) + byte % 16;
}

/// How wgmma finds an operand of rows of 128 bytes in shared memory, eight rows in 1,024 bytes, with 128-byte swizzle:
/// address / 16 in bits 0-13, the stride between groups of eight rows / 16 in bits 32-45, the swizzle's number in
/// 62-63.
__device__ __forceinline__ std::uint64_t swizzled_operand(const void* p) {
  constexpr std::uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return static_cast<std::uint64_t>((shared_address(p) & 0x3ffffu) >> 4) | std::uint64_t{1} << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}

/// The second operand where its rows lie the other way: columns of 64 BF16 values (128 bytes) side by side in panels
/// `panel_bytes` apart, a row of the product's depth every 128 bytes, with 128-byte swizzle. Bits 16-29 are the stride
/// between panels / 16.
__device__ __forceinline__ std::uint64_t swizzled_columns(const void* p, unsigned panel_bytes) {
  constexpr std::uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return static_cast<std::uint64_t>((shared_address(p) & 0x3ffffu) >> 4) | std::uint64_t{panel_bytes / 16} << 16 |
         kEightRows << 32 | kSwizzle128 << 62;
}

/// What threads have written to shared memory is there for wgmma, after a barrier.
__device__ __forceinline__ void fence_shared_for_wgmma() {
#ifndef SHOAL_CUDA_EMULATION
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#ifdef SHOAL_CUDA_EMULATION
/// Byte `k` of row `row` of an operand.
inline unsigned operand_byte(std::uint64_t operand, unsigned row, unsigned k) {
  const auto start = static_cast<unsigned>(operand & 0x3fffu) << 4;
  const auto stride = static_cast<unsigned>(operand >> 32 & 0x3fffu) << 4;
  const unsigned at = start + row / 8 * stride + row % 8 * 128 + k;
  return dynamic_shared()[at ^ ((at >> 7 & 7u) << 4)];
}
inline float operand_bf16(std::uint64_t operand, unsigned row, unsigned k) {
  return widen_bf16(operand_byte(operand, row, 2 * k) | operand_byte(operand, row, 2 * k + 1) << 8);
}
/// Of swizzled_columns(): column `n`, depth `k`.
inline float column_bf16(std::uint64_t operand, unsigned n, unsigned k) {
  const auto start = static_cast<unsigned>(operand & 0x3fffu) << 4;
  const auto panel = static_cast<unsigned>(operand >> 16 & 0x3fffu) << 4;
  const auto eight = static_cast<unsigned>(operand >> 32 & 0x3fffu) << 4;
  const unsigned at = start + n / 64 * panel + k / 8 * eight + k % 8 * 128 + n % 64 * 2;
  const unsigned char* from = dynamic_shared() + (at ^ ((at >> 7 & 7u) << 4));
  return widen_bf16(from[0] | static_cast<unsigned>(from[1]) << 8);
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
#define SHOAL_64_REGISTERS                                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22," \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43," \
  "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

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

#ifdef SHOAL_CUDA_EMULATION
template <unsigned kRegisters, class Column>
void wgmma_bf16_emulated(float* to, std::uint64_t a, bool add, const Column& column) {
  const unsigned t = threadIdx.x % 128;
  emulation::defer([=] {
    float left[2][16];
    for (unsigned r = 0; r < 2; ++r)
      for (unsigned k = 0; k < 16; ++k) left[r][k] = operand_bf16(a, 16 * (t / 32) + t % 32 / 4 + 8 * r, k);
    for (unsigned v = 0; v < kRegisters; ++v) {
      float sum = add ? to[v] : 0.0f;
      for (unsigned k = 0; k < 16; ++k) sum += left[v / 2 % 2][k] * column(2 * (t % 4) + v % 2 + 8 * (v / 4), k);
      to[v] = sum;
    }
  });
}
#endif

/// d = a b^T (+ d where `add`), a [64, 16] and b [32, 16] BF16, both swizzled_operand(); d as of wgmma_f8.
__device__ __forceinline__ void wgmma_bf16_32(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
#ifdef SHOAL_CUDA_EMULATION
  wgmma_bf16_emulated<16>(d, a, add, [=](unsigned n, unsigned k) { return operand_bf16(b, n, k); });
#else
  asm volatile(
      "{\n.reg .pred sums;\nsetp.ne.b32 sums, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
      "%13, %14, %15}, %16, %17, sums, 1, 1, 0, 0;\n}\n"
      : SHOAL_EIGHT(d, 0), SHOAL_EIGHT(d, 8)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

/// The same with b [128, 16].
__device__ __forceinline__ void wgmma_bf16_128(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
#ifdef SHOAL_CUDA_EMULATION
  wgmma_bf16_emulated<64>(d, a, add, [=](unsigned n, unsigned k) { return operand_bf16(b, n, k); });
#else
  asm volatile(
      "{\n.reg .pred sums;\nsetp.ne.b32 sums, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SHOAL_64_REGISTERS "}, %64, %65, sums, 1, 1, 0, 0;\n}\n"
      : SHOAL_EIGHT(d, 0), SHOAL_EIGHT(d, 8), SHOAL_EIGHT(d, 16), SHOAL_EIGHT(d, 24), SHOAL_EIGHT(d, 32),
        SHOAL_EIGHT(d, 40), SHOAL_EIGHT(d, 48), SHOAL_EIGHT(d, 56)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}

/// d += a b, a [64, 16] BF16 in registers, b [16, 128] swizzled_columns(). Of thread t, with lane l = t % 32: a[i] is
/// row 16 (t / 32) + l / 4 + 8 (i % 2), columns 2 (l % 4) + 8 (i / 2) and the next, the first in the low half: what
/// d[8 j ..] of a product becomes, two and two, for columns 16 j of it.
__device__ __forceinline__ void wgmma_bf16_registers_128(float (&d)[64], const unsigned (&a)[4], std::uint64_t b) {
#ifdef SHOAL_CUDA_EMULATION
  struct Fragment {
    unsigned a[4];
  };
  const Fragment mine{{a[0], a[1], a[2], a[3]}};
  const std::byte* all = emulation::meet_warp(kAllLanes, &mine, sizeof mine, emulation::Where::current());
  std::array<std::array<float, 16>, 2> left{};
  for (unsigned k = 0; k < 16; ++k) {
    const unsigned lane = emulation::lane() / 4 * 4 + k % 8 / 2;
    const auto* of = reinterpret_cast<const Fragment*>(all + lane * emulation::kLaneBytes);
    for (unsigned r = 0; r < 2; ++r) left[r][k] = widen_bf16(of->a[r + 2 * (k / 8)] >> (16 * (k % 2)) & 0xffffu);
  }
  float* to = d;
  const unsigned t = threadIdx.x % 128;
  emulation::defer([=] {
    for (unsigned v = 0; v < 64; ++v)
      for (unsigned k = 0; k < 16; ++k)
        to[v] += left[v / 2 % 2][k] * column_bf16(b, 2 * (t % 4) + v % 2 + 8 * (v / 4), k);
  });
#else
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SHOAL_64_REGISTERS
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
               : SHOAL_EIGHT(d, 0), SHOAL_EIGHT(d, 8), SHOAL_EIGHT(d, 16), SHOAL_EIGHT(d, 24), SHOAL_EIGHT(d, 32),
                 SHOAL_EIGHT(d, 40), SHOAL_EIGHT(d, 48), SHOAL_EIGHT(d, 56)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

/// d += a b, a [64, 16] BF16 swizzled_operand(), b [16, 256] swizzled_columns().
__device__ __forceinline__ void wgmma_bf16_columns_256(float (&d)[128], std::uint64_t a, std::uint64_t b) {
#ifdef SHOAL_CUDA_EMULATION
  wgmma_bf16_emulated<128>(d, a, true, [=](unsigned n, unsigned k) { return column_bf16(b, n, k); });
#else
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "
      "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
      "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127 "
      "}, %128, %129, 1, 1, 1, 0, 1;\n"
      : SHOAL_EIGHT(d, 0), SHOAL_EIGHT(d, 8), SHOAL_EIGHT(d, 16), SHOAL_EIGHT(d, 24), SHOAL_EIGHT(d, 32),
        SHOAL_EIGHT(d, 40), SHOAL_EIGHT(d, 48), SHOAL_EIGHT(d, 56), SHOAL_EIGHT(d, 64), SHOAL_EIGHT(d, 72),
        SHOAL_EIGHT(d, 80), SHOAL_EIGHT(d, 88), SHOAL_EIGHT(d, 96), SHOAL_EIGHT(d, 104), SHOAL_EIGHT(d, 112),
        SHOAL_EIGHT(d, 120)
      : "l"(a), "l"(b));
#endif
}

#undef SHOAL_EIGHT
#undef SHOAL_64_REGISTERS

}  // namespace shoal::cuda::sm90
