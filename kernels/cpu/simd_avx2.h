#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

/// The operations of simd_avx512.h for AVX2, FMA and F16C; the comments stand there.
namespace shoal::cpu {
namespace {

struct Lanes {
  __m256 low, high;
};
struct LanePair {
  Lanes even, odd;
};

inline Lanes lanes_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes lanes_load(const void* p) {
  const auto* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
inline void lanes_store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.low);
  _mm256_storeu_ps(p + 8, a.high);
}
inline Lanes lanes_broadcast(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
inline Lanes lanes_fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline __m256i load_8_dwords(const void* p, int which) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p) + which);
}

inline LanePair lanes_load_bf16(const void* p) {
  const __m256i a = load_8_dwords(p, 0), b = load_8_dwords(p, 1);
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(a, upper)), _mm256_castsi256_ps(_mm256_and_si256(b, upper))}};
}

/// 16 dwords below 2^16 as F16.
inline Lanes half_dwords_to_lanes(__m256i a, __m256i b) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256(words, 1))};
}

inline LanePair lanes_load_f16(const void* p) {
  const __m256i a = load_8_dwords(p, 0), b = load_8_dwords(p, 1), lower = _mm256_set1_epi32(0xffff);
  return {half_dwords_to_lanes(_mm256_and_si256(a, lower), _mm256_and_si256(b, lower)),
          half_dwords_to_lanes(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16))};
}

constexpr float kF8Unit = 256.0f;
inline Lanes lanes_load_f8(const void* p) {
  const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}
inline Lanes lanes_load_i8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
}

// Of 16 registers, 12 hold sums, 2 weights, 1 an activation.
constexpr int kTileWidths[] = {1, 2, 3, 4, 6}, kManyWidth = 6;
constexpr int panels_at_once(int width) { return width == 1 ? 4 : width <= 3 ? 2 : 1; }

struct Vec {
  __m256 v;
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
};
constexpr int kVec = 8;

inline __m256i first_lanes(std::int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec vec_set(float f) { return {_mm256_set1_ps(f)}; }
inline Vec vec_load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec vec_load_first(const float* p, std::int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
inline void vec_store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void vec_store_first(float* p, Vec a, std::int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_bf16(const std::uint16_t* p) {
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16))};
}
inline Vec vec_greater(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec vec_round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec vec_clamp(Vec a, float low, float high) {
  return {_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), a.v))};
}
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) {
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(whole, half)))};
}
inline float vec_sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float vec_max(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
inline void vec_sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
  const __m256 abcd = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}

constexpr int kHeadTile = 2, kPositionTile = 4, kValueTile = 4;
constexpr int kQueryTile = 3, kFewQueries = 1;

}  // namespace
}  // namespace shoal::cpu
