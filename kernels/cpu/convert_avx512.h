#pragma once
#include "kernels/cpu/simd_avx512.h"

namespace shoal::cpu {
namespace {

/// The conversions of a quantized record with AVX-512.
struct Convert512 {
  static constexpr bool kWideCodesAreSigned = false;

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

  static void look_up(std::uint8_t* codes, const std::uint8_t* table) {
    const __m512i entries = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    for (int i = 0; i < 512; i += 64) {
      _mm512_store_si512(codes + i, _mm512_shuffle_epi8(entries, _mm512_load_si512(codes + i)));
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
