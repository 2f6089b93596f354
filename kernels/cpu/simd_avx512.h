#pragma once
// GCC 12 takes the "undefined" vectors of its own header for uninitialised variables (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstddef>
#include <cstdint>

/// The vector operations kernels are written in, for AVX-512 (F, BW, DQ, VL). simd_avx2.h and simd_portable.h have the
/// same names. All in an unnamed namespace: see kernel_table.h.
namespace shoal::cpu {
namespace {

/// 16 outputs of one panel.
struct Lanes {
  __m512 v;
};
struct LanePair {
  Lanes even, odd;  // of two neighbouring columns
};

inline Lanes lanes_zero() { return {_mm512_setzero_ps()}; }
inline Lanes lanes_load(const void* p) { return {_mm512_loadu_ps(p)}; }
inline void lanes_store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes lanes_broadcast(float f) { return {_mm512_set1_ps(f)}; }
inline Lanes lanes_fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

inline LanePair lanes_load_bf16(const void* p) {
  const __m512i v = _mm512_loadu_si512(p);
  const __m512i odd = _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(v, 16))}, {_mm512_castsi512_ps(odd)}};
}

inline LanePair lanes_load_f16(const void* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return {{_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v))},
          {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)))}};
}

/// F8 codes become F16 with the same exponent and mantissa bits, whose bias differs by 8: values come out kF8Unit times
/// too small, which the block's scale makes good. Exact, subnormals included; NaN codes are not known here.
constexpr float kF8Unit = 256.0f;
inline Lanes lanes_load_f8(const void* p) {
  const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16(static_cast<short>(0xbfff)));
  return {_mm512_cvtph_ps(half)};
}
inline Lanes lanes_load_i8(const void* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))))};
}

/// Widths of token tiles, and how many panels are multiplied at once so that accumulators fill the 32 registers. Where
/// one tile does not hold all tokens they are up to kManyWidth wide, which is fastest a token.
constexpr int kTileWidths[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16}, kManyWidth = 12;
constexpr int panels_at_once(int width) { return width <= 6 ? 4 : width <= 12 ? 2 : 1; }

/// A register of floats along a row.
struct Vec {
  __m512 v;
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
};
constexpr int kVec = 16;

inline __mmask16 first_lanes(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec vec_set(float f) { return {_mm512_set1_ps(f)}; }
inline Vec vec_load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec vec_load_first(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
inline void vec_store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void vec_store_first(float* p, Vec a, std::int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }
inline Vec vec_fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec vec_load_bf16(const std::uint16_t* p) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16))};
}
inline Vec vec_greater(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec vec_round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// NaN in `a` stays: the instruction returns its second operand when either is NaN.
inline Vec vec_clamp(Vec a, float low, float high) {
  return {_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), a.v))};
}
/// a * 2^n for a whole n between -252 and 254, in two steps so that results may overflow or be subnormal.
inline Vec vec_scale_by_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float vec_sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float vec_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

/// The sums of four vectors' lanes, all four summed in the same order.
inline void vec_sum4(Vec a, Vec b, Vec c, Vec d, float* out) {
  const auto fold = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  };
  const __m512 ab = fold(a.v, b.v), cd = fold(c.v, d.v);  // 8 partial sums of each
  __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, s)));
}

/// Heads and positions whose dot products attention computes together, and value vectors it accumulates together.
constexpr int kHeadTile = 4, kPositionTile = 4, kValueTile = 4;
/// Queries of a prompt that pass a block of positions together (two Lanes of sums each), and of those that are left.
constexpr int kQueryTile = 12, kFewQueries = 4;

}  // namespace
}  // namespace shoal::cpu
