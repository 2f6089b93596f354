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

/// Lane l of x, or its first `count` elements, to out + l * step.
inline void store_lanes(__m512i x, int count, std::int32_t* out, std::int64_t step) {
  const auto mask = static_cast<__mmask8>((1u << count) - 1u);
  _mm_mask_storeu_epi32(out, mask, _mm512_castsi512_si128(x));
  _mm_mask_storeu_epi32(out + step, mask, _mm512_extracti32x4_epi32(x, 1));
  _mm_mask_storeu_epi32(out + 2 * step, mask, _mm512_extracti32x4_epi32(x, 2));
  _mm_mask_storeu_epi32(out + 3 * step, mask, _mm512_extracti32x4_epi32(x, 3));
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
