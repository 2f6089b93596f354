#pragma once
#include <immintrin.h>

#include "kernels/cpu/simd_avx512.h"

/// Products of bytes, four of a row to a sum in 32 bits: an instruction of AVX-512 VNNI, or without it (Intel's servers
/// of 2017) what stands in for it. The sums are the same integers.
namespace shoal::cpu {
namespace {

/// What codes, bytes without a sign, may be. Without VNNI two products are added up in 16 bits first, which those of
/// codes up to 129 fit. Of centred ones 128 stands for nothing: they become numbers with a sign, and then nothing is to
/// be taken off. Any others take longest.
enum class CodeRange { any, even, small, centred };

#ifdef __AVX512VNNI__

/// VNNI makes no difference between them.
constexpr CodeRange range_for(CodeRange) { return CodeRange::any; }

/// sum += code times four bytes of a token, which the instruction itself spreads over all rows: compilers would spend
/// another on that.
template <CodeRange>
SHOAL_INLINE void multiply_quad(__m512i& sum, __m512i code, const int& bytes) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(code), "m"(bytes));
}

/// The same of bytes spread already.
template <CodeRange>
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

#else

constexpr CodeRange range_for(CodeRange range) { return range; }

SHOAL_INLINE __m512i add_pairs(__m512i sum, __m512i a, __m512i b) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}

template <CodeRange kRange>
SHOAL_INLINE void multiply_quad(__m512i& sum, __m512i code, __m512i bytes) {
  if constexpr (kRange == CodeRange::any) {
    // Every other column by itself, in 16 bits.
    const __m512i first = _mm512_and_si512(code, _mm512_set1_epi16(0xff)), second = _mm512_srli_epi16(code, 8);
    const __m512i first_bytes = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
    const __m512i second_bytes = _mm512_srai_epi16(bytes, 8);
    sum = add_pairs(add_pairs(sum, first, first_bytes), second, second_bytes);
  } else if constexpr (kRange == CodeRange::centred) {
    const __m512i number = _mm512_xor_si512(code, _mm512_set1_epi8(-128));
    const __m512i turned = _mm512_mask_sub_epi8(bytes, _mm512_movepi8_mask(number), _mm512_setzero_si512(), bytes);
    sum = add_pairs(sum, _mm512_maddubs_epi16(_mm512_abs_epi8(number), turned), _mm512_set1_epi16(1));
  } else {
    // Half of an even code: no bit crosses over into another.
    constexpr bool kHalved = kRange == CodeRange::even;
    const __m512i pairs = _mm512_maddubs_epi16(kHalved ? _mm512_srli_epi16(code, 1) : code, bytes);
    sum = add_pairs(sum, pairs, _mm512_set1_epi16(kHalved ? 2 : 1));
  }
}
template <CodeRange kRange>
SHOAL_INLINE void multiply_quad(__m512i& sum, __m512i code, const int& bytes) {
  multiply_quad<kRange>(sum, code, _mm512_set1_epi32(bytes));
}

SHOAL_INLINE void multiply_pair(__m512i& sum, __m512i pairs, const int& pair) {
  sum = add_pairs(sum, pairs, _mm512_set1_epi32(pair));
}
SHOAL_INLINE __m512i sum_quads(__m512i bytes) {
  return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), bytes), _mm512_set1_epi16(1));
}

#endif

/// Whether what codes stand above zero is in the sums of their products.
constexpr bool sums_need_offset(CodeRange range) { return range != CodeRange::centred; }

}  // namespace
}  // namespace shoal::cpu
