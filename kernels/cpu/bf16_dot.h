#pragma once
#include "kernels/cpu/interleave_avx512.h"
// The products need the operations above.
#include "kernels/cpu/gemm.inl"

/// Products with BF16 activations on CPUs with AVX512_BF16: one instruction adds two columns' products to 16 outputs. A
/// panel's layout is the one that instruction reads.
namespace shoal::cpu {
namespace {

/// Activations as pairs of BF16, [cols / 2][width] in a tile.
struct Bf16Dot {
  using Element = std::uint32_t;
  using Loaded = __m512i;
  static constexpr int kColumns = 2, kStep = 2;
  static constexpr bool kPlain = true;
  static constexpr std::int64_t kStepBytes = 64;
  static constexpr float kUnit = 1.0f;
  static SHOAL_INLINE Loaded load(const std::byte* p) { return _mm512_loadu_si512(p); }
  template <int T>
  static SHOAL_INLINE Lanes multiply(Lanes sum, const Loaded& w, const std::uint32_t* x, int t) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(x[t]));
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)w, (__m512bh)pair)};
  }
};

inline std::int64_t pair_tile_bytes(int width, std::int64_t cols) { return even(cols) * width * 2; }

/// 32 columns from `c` on as pairs of BF16; those from `cols` on are zeros. Ties to even, NaN stays NaN.
SHOAL_INLINE __m512i load_pairs(const float* row, std::int64_t c, std::int64_t cols) {
  const auto rounded = [&](std::int64_t at) {
    const std::int64_t left = cols - at;
    const __mmask16 mask = left >= 16 ? __mmask16{0xffff} : left > 0 ? first_lanes(left) : __mmask16{0};
    const __m512 f = _mm512_maskz_loadu_ps(mask, row + at);
    const __m512i u = _mm512_castps_si512(f);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(f, f, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000)), 16));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(c)), rounded(c + 16), 1);
}

inline void pack_pairs(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  auto* out = reinterpret_cast<std::int32_t*>(tile);
  const std::int64_t pairs = even(cols) / 2;
  for (std::int64_t p = 0; p < pairs; p += 16) {
    for (int first = 0; first < width; first += 4) {
      const int count = width - first < 4 ? width - first : 4;
      __m512i row[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        row[t] = first + t < tokens ? load_pairs(rows[first + t], 2 * p, cols) : _mm512_setzero_si512();
      }
      if (p + 16 <= pairs) {
        interleave(row, count, out + p * width + first, width);
      } else {
        std::int32_t last[16 * 4];
        interleave(row, 4, last, 4);
        for (std::int64_t i = 0; i < pairs - p; ++i)
          std::memcpy(out + (p + i) * width + first, last + i * 4, static_cast<std::size_t>(count) * 4);
      }
    }
  }
}

}  // namespace
}  // namespace shoal::cpu
