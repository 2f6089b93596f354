#pragma once
#include <immintrin.h>

#include "kernels/cpu/simd_avx512.h"

/// Products of bytes, four of a row to a sum in 32 bits: an instruction of AVX-512 VNNI, or without it (Intel's servers
/// of 2017) what stands in for it. The sums are the same integers.
namespace shoal::cpu {
namespace {

/// What codes, bytes without a sign, may be. Without VNNI products are added up in 16 bits first, and how many of them
/// fit depends on it: `shifted` codes are small ones, shifted left until their middle is 128. Of centred ones 128
/// stands for nothing: they become numbers with a sign, and then nothing is to be taken off. Any others take longest.
enum class CodeRange { any, shifted, small, centred };

#ifdef __AVX512VNNI__

/// VNNI makes no difference between them.
constexpr CodeRange range_for(CodeRange) { return CodeRange::any; }
/// Quads that are best multiplied together.
constexpr int quads_together(CodeRange, int /*bits*/) { return 1; }

/// What shifted codes need.
struct Narrowing {
  static Narrowing of(int) { return {}; }
};

/// sum += code times four bytes of a token, which the instruction itself spreads over all rows: compilers would spend
/// another on that.
SHOAL_INLINE void multiply_quad(__m512i& sum, __m512i code, const int& bytes) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(code), "m"(bytes));
}

/// The same of bytes spread already.
SHOAL_INLINE void multiply_quad(__m512i& sum, __m512i code, __m512i bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(code), "v"(bytes));
}

/// sum += pairs of 16 bits times a pair of a token's.
SHOAL_INLINE void multiply_pair(__m512i& sum, __m512i pairs, const int& pair) {
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(pairs), "m"(pair));
}

SHOAL_INLINE __m512i add_pairs(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
SHOAL_INLINE __m512i sum_quads(__m512i bytes) {
  return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
}

/// Adds the products of quads `q` to the sums of P panels and T tokens, whose bytes lie `apart` quads from each other.
/// Of several panels, bytes are brought once: CPUs that begin two multiplications at a time bring no more than two
/// operands.
template <CodeRange, int N, int P, int T>
SHOAL_INLINE void multiply_quads(__m512i (&sum)[P][T], const __m512i (&code)[N][P], const int* bytes, int apart,
                                 const int (&q)[N], const Narrowing&) {
  static_assert(N == 1);
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    if constexpr (P == 1) {
      multiply_quad(sum[0][t], code[0][0], bytes[t * apart + q[0]]);
    } else {
      const __m512i spread = _mm512_set1_epi32(bytes[t * apart + q[0]]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) multiply_quad(sum[p][t], code[0][p], spread);
    }
  }
}

#else

constexpr CodeRange range_for(CodeRange range) { return range; }
/// Of how many quads two products each fit into 16 bits: (2^bits - 1) * 127 * 2 * quads < 2^15.
constexpr int quads_together(CodeRange range, int bits) {
  const bool few = range == CodeRange::small || range == CodeRange::shifted;
  const int fit = few ? 32767 / (((1 << bits) - 1) * 254) : 1;
  return fit < 4 ? fit : 4;
}

struct Narrowing {
  __m128i right;
  __m512i unit;
  /// Of codes shifted left by so much.
  static SHOAL_INLINE Narrowing of(int shift) {
    return {_mm_cvtsi32_si128(shift), _mm512_set1_epi16(static_cast<short>(1 << shift))};
  }
};

SHOAL_INLINE __m512i add_pairs(__m512i sum, __m512i a, __m512i b) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}
SHOAL_INLINE void multiply_pair(__m512i& sum, __m512i pairs, const int& pair) {
  sum = add_pairs(sum, pairs, _mm512_set1_epi32(pair));
}
SHOAL_INLINE __m512i sum_quads(__m512i bytes) {
  return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes), _mm512_set1_epi16(1));
}

/// Every other column by itself, in 16 bits.
SHOAL_INLINE void multiply_any(__m512i& sum, __m512i code, __m512i bytes) {
  const __m512i first = _mm512_and_si512(code, _mm512_set1_epi16(0xff)), second = _mm512_srli_epi16(code, 8);
  const __m512i first_bytes = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
  sum = add_pairs(add_pairs(sum, first, first_bytes), second, _mm512_srai_epi16(bytes, 8));
}
SHOAL_INLINE void multiply_centred(__m512i& sum, __m512i code, __m512i bytes) {
  const __m512i number = _mm512_xor_si512(code, _mm512_set1_epi8(-128));
  const __m512i turned = _mm512_mask_sub_epi8(bytes, _mm512_movepi8_mask(number), _mm512_setzero_si512(), bytes);
  sum = add_pairs(sum, _mm512_maddubs_epi16(_mm512_abs_epi8(number), turned), _mm512_set1_epi16(1));
}

template <CodeRange kRange, int N, int P, int T>
SHOAL_INLINE void multiply_quads(__m512i (&sum)[P][T], const __m512i (&code)[N][P], const int* bytes, int apart,
                                 const int (&q)[N], const Narrowing& narrowing) {
  static_assert(N == 1 || kRange == CodeRange::shifted || kRange == CodeRange::small);
  __m512i narrow[N][P];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      // No bit crosses over into another code: what is shifted out is zero.
      narrow[n][p] = kRange == CodeRange::shifted ? _mm512_srl_epi16(code[n][p], narrowing.right) : code[n][p];
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    __m512i spread[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) spread[n] = _mm512_set1_epi32(bytes[t * apart + q[n]]);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      if constexpr (kRange == CodeRange::any) {
        multiply_any(sum[p][t], narrow[0][p], spread[0]);
      } else if constexpr (kRange == CodeRange::centred) {
        multiply_centred(sum[p][t], narrow[0][p], spread[0]);
      } else {
        __m512i pairs = _mm512_maddubs_epi16(narrow[0][p], spread[0]);
#pragma GCC unroll 4
        for (int n = 1; n < N; ++n) pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(narrow[n][p], spread[n]));
        sum[p][t] = add_pairs(sum[p][t], pairs, kRange == CodeRange::shifted ? narrowing.unit : _mm512_set1_epi16(1));
      }
    }
  }
}

#endif

/// Whether what codes stand above zero is in the sums of their products.
constexpr bool sums_need_offset(CodeRange range) { return range != CodeRange::centred; }

}  // namespace
}  // namespace shoal::cpu
