#pragma once
#include "kernels/cpu/simd_avx512.h"

namespace shoal::cpu {
namespace {

/// Registers of four rows, transposed four by four: 128-bit lane l of out[j] is element 4 * l + j of the rows 0 to 3.
inline void transpose_fours(const __m512i (&row)[4], __m512i (&out)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpackhi_epi32(row[0], row[1]);
  const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]), d = _mm512_unpackhi_epi32(row[2], row[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
}

/// The first `count` <= 4 elements: AMD's processors take long over stores with masks.
inline void store_first(__m128i x, int count, void* to) {
  if (count == 4) return _mm_storeu_si128(static_cast<__m128i*>(to), x);
  if (count >= 2) {
    _mm_storel_epi64(static_cast<__m128i*>(to), x);
    to = static_cast<std::byte*>(to) + 8;
    x = _mm_unpackhi_epi64(x, x);
  }
  if (count % 2 == 1) _mm_storeu_si32(to, x);
}

/// Lane l of x, or its first `count` elements, to out + l * step.
inline void store_lanes(__m512i x, int count, std::int32_t* out, std::int64_t step) {
  store_first(_mm512_castsi512_si128(x), count, out);
  store_first(_mm512_extracti32x4_epi32(x, 1), count, out + step);
  store_first(_mm512_extracti32x4_epi32(x, 2), count, out + 2 * step);
  store_first(_mm512_extracti32x4_epi32(x, 3), count, out + 3 * step);
}

/// out[i * width + t] = element i of row t: 16 elements of `count` <= 4 rows.
inline void interleave(const __m512i (&row)[4], int count, std::int32_t* out, std::int64_t width) {
  if (width == 1) {
    _mm512_storeu_si512(out, row[0]);
    return;
  }
  __m512i fours[4];
  transpose_fours(row, fours);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) store_lanes(fours[j], count, out + j * width, 4 * width);
}

}  // namespace
}  // namespace shoal::cpu
