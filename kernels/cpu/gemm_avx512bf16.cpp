#include "kernels/cpu/simd_avx512.h"
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
  static constexpr std::int64_t kStepBytes = 64;
  static constexpr float kUnit = 1.0f;
  static SHOAL_INLINE Loaded load(const std::byte* p) { return _mm512_loadu_si512(p); }
  template <int T>
  static SHOAL_INLINE Lanes multiply(Lanes sum, const Loaded& w, const std::uint32_t* x, int t) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int>(x[t]));
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)w, (__m512bh)pair)};
  }
};

/// Two columns of F8 as pairs of BF16, kUnit times too small, exact. Exponent and mantissa are moved into place and the
/// exponent's bias made good but for a factor of 256, which then needs no addition; the seven subnormals come from a
/// table.
struct F8Dot : Bf16Dot {
  static constexpr std::int64_t kStepBytes = 32;
  static constexpr float kUnit = 256.0f;
  static SHOAL_INLINE Loaded load(const std::byte* p) {
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16));
    const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    const __m512i code = _mm512_cvtepi8_epi16(pairs);  // the upper half of each word is its sign
    constexpr int kAndOr = 0xea, kOrAnd = 0xf8;        // (a & b) | c and a | (b & c)
    __m512i value = _mm512_ternarylogic_epi32(_mm512_slli_epi16(code, 4), _mm512_set1_epi16(0x07f0),
                                              _mm512_set1_epi16((127 - 7 - 8) << 7), kAndOr);
    const __mmask32 subnormal = _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78));
    // m * 2^-17 for m = 0..7, looked up by the code's low bits.
    const __m512i small =
        _mm512_castsi128_si512(_mm_setr_epi16(0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3820, 0x3840, 0x3860));
    value = _mm512_mask_permutexvar_epi16(value, subnormal, code, small);
    return _mm512_ternarylogic_epi32(value, code, _mm512_set1_epi16(static_cast<short>(0x8000)), kOrAnd);
  }
};

void convert_f8_to_bf16(const std::byte* codes, std::int64_t columns, std::byte* out) {
  for (std::int64_t c = 0; c < columns; c += 2) _mm512_storeu_si512(out + c * 32, F8Dot::load(codes + c * 16));
}

void run_f8_dot(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
                std::byte* scratch) {
  run_blocks<F8Dot, Bf16Dot>(w, first, panels, tiles, n_tiles, scratch, convert_f8_to_bf16);
}

std::int64_t pair_tile_bytes(int width, std::int64_t cols) { return even(cols) * width * 2; }

void pack_pairs(const float* const* rows, int tokens, int width, std::int64_t cols, std::byte* tile) {
  auto* out = reinterpret_cast<std::uint32_t*>(tile);
  constexpr std::int64_t kBlock = 64;
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    const std::int64_t end = begin + kBlock < cols ? begin + kBlock : cols;
    for (int t = 0; t < width; ++t) {
      for (std::int64_t c = begin; c < end; c += 2) {
        const std::uint32_t first = t < tokens ? bf16_bits(rows[t][c]) : 0;
        const std::uint32_t second = t < tokens && c + 1 < cols ? bf16_bits(rows[t][c + 1]) : 0;
        out[c / 2 * width + t] = first | (second << 16);
      }
    }
  }
}

}  // namespace

void fill_gemm_avx512bf16(KernelTable& table) {
  table.gemm_bf16[int(WeightKind::bf16)] = {tile_width, pair_tile_bytes, pack_pairs, scratch_none, run_plain<Bf16Dot>};
  table.gemm_bf16[int(WeightKind::f8)] = {tile_width, pair_tile_bytes, pack_pairs, scratch_f8, run_f8_dot};
}

}  // namespace shoal::cpu
