#pragma once
#include "kernels/cuda/convert.h"
#ifdef SHOAL_CUDA_EMULATION
#include "base/error.h"
#endif

// Tensor-core products of a warp, and copies that bring their operands. Each is one instruction, or its emulation after
// the fragment layouts that the PTX ISA documents ("Matrix Fragments for mma.m16n8k16 with floating point type").
namespace shoal::cuda {

/// c += a b, a [16, 16] and b [16, 8] BF16, c [16, 8] FP32. Of lane l, with g = l / 4 and t = l % 4:
///   a[i]: row g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next, the first in the low half
///   b[i]: column g, rows 2 t + 8 i and the next
///   c[i]: row g + 8 (i / 2), column 2 t + i % 2
__device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef SHOAL_CUDA_EMULATION
  struct Operands {
    unsigned a[4], b[2];
  };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const std::byte* all = emulation::meet_warp(kAllLanes, &mine, sizeof mine, emulation::Where::current());
  const auto of_lane = [&](unsigned lane) {
    return reinterpret_cast<const Operands*>(all + lane * emulation::kLaneBytes);
  };
  const unsigned lane = emulation::lane(), g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned a_pair = of_lane(row % 8 * 4 + k % 8 / 2)->a[row / 8 + 2 * (k / 8)];
      const unsigned b_pair = of_lane(col * 4 + k % 8 / 2)->b[k / 8];
      c[i] += widen_bf16(a_pair >> (16 * (k % 2)) & 0xffffu) * widen_bf16(b_pair >> (16 * (k % 2)) & 0xffffu);
    }
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// c += a b, a [16, 32] and b [32, 8] signed bytes, c [16, 8] whole numbers, exact. Of lane l, with g = l / 4 and
/// t = l % 4:
///   a[i]: row g + 8 (i % 2), columns 4 t + 16 (i / 2) and the next three, the first in the lowest byte
///   b[i]: column g, rows 4 t + 16 i and the next three
///   c[i]: row g + 8 (i / 2), column 2 t + i % 2
/// With one b, half as many columns: a[0], a[1] and b[0] are all.
template <int kA, int kB>
__device__ __forceinline__ void mma_bytes(int (&c)[4], const unsigned (&a)[kA], const unsigned (&b)[kB]) {
  static_assert((kA == 4 && kB == 2) || (kA == 2 && kB == 1));
#ifdef SHOAL_CUDA_EMULATION
  struct Operands {
    unsigned a[kA], b[kB];
  };
  Operands mine;
  for (int i = 0; i < kA; ++i) mine.a[i] = a[i];
  for (int i = 0; i < kB; ++i) mine.b[i] = b[i];
  const std::byte* all = emulation::meet_warp(kAllLanes, &mine, sizeof mine, emulation::Where::current());
  const auto of_lane = [&](unsigned lane) {
    return reinterpret_cast<const Operands*>(all + lane * emulation::kLaneBytes);
  };
  const auto byte_of = [](unsigned word, unsigned i) {
    return static_cast<int>(static_cast<std::int8_t>(word >> (8 * i) & 0xffu));
  };
  const unsigned lane = emulation::lane(), g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), col = 2 * t + i % 2;
    for (unsigned k = 0; k < 16 * kB; ++k) {
      const unsigned a_word = of_lane(row % 8 * 4 + k % 16 / 4)->a[row / 8 + 2 * (k / 16)];
      const unsigned b_word = of_lane(col * 4 + k % 16 / 4)->b[k / 16];
      c[i] += byte_of(a_word, k % 4) * byte_of(b_word, k % 4);
    }
  }
#else
  if constexpr (kB == 2)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#endif
}

/// Two floats as BF16, the first in the low half; nearest even.
__device__ __forceinline__ unsigned bf16_pair(float low, float high) {
#ifdef SHOAL_CUDA_EMULATION
  return narrow_bf16(low) | narrow_bf16(high) << 16;
#else
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

/// The sums of two pairs of BF16, nearest even.
__device__ __forceinline__ unsigned add_bf16_pairs(unsigned a, unsigned b) {
#ifdef SHOAL_CUDA_EMULATION
  return narrow_bf16(widen_bf16(a & 0xffffu) + widen_bf16(b & 0xffffu)) |
         narrow_bf16(widen_bf16(a >> 16) + widen_bf16(b >> 16)) << 16;
#else
  unsigned sum;  // as a times one plus b, because add.bf16x2 came with sm_90
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
#endif
}

#ifdef SHOAL_CUDA_EMULATION
/// Four matrices of 8 x 8 16-bit values; lanes 8 i .. 8 i + 7 bring the rows of matrix i.
template <bool kTransposed>
void load_matrices_emulated(unsigned (&d)[4], const void* row, emulation::Where where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row at {} is not aligned to 16", row);
  struct Row {
    std::uint16_t value[8];
  };
  const std::byte* all = emulation::meet_warp(kAllLanes, row, sizeof(Row), where);
  const unsigned lane = emulation::lane(), g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto element = [&](unsigned r, unsigned c) -> unsigned {
      return reinterpret_cast<const Row*>(all + (8 * i + r) * emulation::kLaneBytes)->value[c];
    };
    d[i] =
        kTransposed ? element(2 * t, g) | element(2 * t + 1, g) << 16 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
}
#endif

/// Four matrices of 8 x 8 16-bit values from shared memory (ldmatrix): lane l gives the address of row l % 8 of matrix
/// l / 8 (16 bytes, aligned) and receives, of matrix i, d[i]: row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices(unsigned (&d)[4], const void* row) {
#ifdef SHOAL_CUDA_EMULATION
  load_matrices_emulated<false>(d, row, emulation::Where::current());
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
/// The same, each matrix transposed: d[i] is column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&d)[4], const void* row) {
#ifdef SHOAL_CUDA_EMULATION
  load_matrices_emulated<true>(d, row, emulation::Where::current());
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

/// 16 bytes into shared memory, the first `valid` of them from `from` and zeros behind; done when the thread has
/// waited.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, int valid) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::copy_async(to, from, 16, static_cast<std::size_t>(valid));
#else
  const auto shared_address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address), "l"(from), "r"(valid) : "memory");
#endif
}
/// Four bytes likewise.
__device__ __forceinline__ void copy_async_4(void* to, const void* from) {
#ifdef SHOAL_CUDA_EMULATION
  emulation::copy_async(to, from, 4, 4);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#endif
}
__device__ __forceinline__ void commit_copies() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Until no more than the last kPending groups of copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#ifdef SHOAL_CUDA_EMULATION
  emulation::wait_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace shoal::cuda
