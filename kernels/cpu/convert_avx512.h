#pragma once
#include "kernels/cpu/simd_avx512.h"
// After the instructions it uses.
#include "kernels/cpu/coded_avx2.h"

namespace shoal::cpu {
namespace {

/// The conversions of a quantized record with AVX-512.
struct Convert512 {
  static constexpr bool kWideCodesAreSigned = false, kWholeFactors = false, kBytesInPlace = false,
                        kKnowsLayouts = false;
  static constexpr int kPanels = 1;

  static void halves(const std::byte* from, float* to) {
    _mm512_store_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }

  static void multiply_signed(const float* by, const std::byte* bytes, float* to) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    _mm512_store_ps(to, _mm512_mul_ps(_mm512_load_ps(by), _mm512_cvtepi32_ps(wide)));
  }
  static void multiply_unsigned(const float* by, const std::byte* bytes, float* to) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    _mm512_store_ps(to, _mm512_mul_ps(_mm512_load_ps(by), _mm512_cvtepi32_ps(wide)));
  }

  static void take_nibbles(const std::byte* words, int shift, const std::uint8_t* table, std::uint8_t* to) {
    const __m512i at = _mm512_srl_epi32(_mm512_loadu_si512(words), _mm_cvtsi32_si128(shift));
    const __m128i nibbles = _mm_and_si128(_mm512_cvtepi32_epi8(at), _mm_set1_epi8(15));
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(entries, nibbles));
  }

  /// 32 floats as BF16, ties to even, NaN kept.
  static void pack_bf16(const float* x, std::byte* out) {
    const auto rounded = [](__m512 f) {
      const __m512i u = _mm512_castps_si512(f);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
      const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
      const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
      return _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
    };
    const __m512i a = _mm512_srli_epi32(rounded(_mm512_loadu_ps(x)), 16);
    const __m512i b = _mm512_srli_epi32(rounded(_mm512_loadu_ps(x + 16)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(a));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + 1, _mm512_cvtepi32_epi16(b));
  }

  template <int kWidth, int kLow>
  static void take_plane(const std::uint8_t* from, std::uint8_t* codes) {
    const __m512i mask = _mm512_set1_epi8((1 << kWidth) - 1);
    __m512i plane[kWidth];
#pragma GCC unroll 4
    for (int i = 0; i < kWidth; ++i) plane[i] = _mm512_loadu_si512(from + i * 64);
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) {
      __m512i bits = _mm512_and_si512(_mm512_srli_epi64(plane[q % kWidth], q / kWidth * kWidth), mask);
      if constexpr (kLow > 0) bits = _mm512_or_si512(_mm512_slli_epi64(bits, kLow), _mm512_load_si512(codes + q * 64));
      _mm512_store_si512(codes + q * 64, bits);
    }
  }

  /// Two columns of 16 rows of F8 (no NaN codes) as pairs of BF16. Exponent and mantissa are moved into place; the
  /// seven subnormals, m * 2^-9, come from a table.
  static void f8_pairs(const std::byte* codes, std::byte* out) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16));
    const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    const __m512i code = _mm512_cvtepi8_epi16(pairs);  // the upper half of each word is its sign
    __m512i value = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi16(0x07f0));
    value = _mm512_add_epi16(value, _mm512_set1_epi16(120 << 7));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    const __m512i small =
        _mm512_castsi128_si512(_mm_setr_epi16(0x0000, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    value = _mm512_mask_permutexvar_epi16(value, subnormal, code, small);
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    const __m512i sign = _mm512_set1_epi16(static_cast<short>(0x8000));
    _mm512_storeu_si512(out, _mm512_ternarylogic_epi32(value, code, sign, kOrAnd));
  }

  static void take_coded(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
    take_coded_step(f, record, step, codes);
  }
  static void look_up(std::uint8_t* codes, const std::uint8_t* table) {
    const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    for (int i = 0; i < 512; i += 64) {
      _mm512_store_si512(codes + i, _mm512_shuffle_epi8(entries, _mm512_load_si512(codes + i)));
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
