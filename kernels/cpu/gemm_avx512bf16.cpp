#include "kernels/cpu/bf16_dot.h"

namespace shoal::cpu {
namespace {

/// Two columns of F8 as pairs of BF16, kUnit times too small, exact. Exponent and mantissa are moved into place and the
/// exponent's bias made good but for a factor of 256, which then needs no addition; the seven subnormals come from a
/// table.
struct F8Dot : Bf16Dot {
  static constexpr bool kPlain = false;
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

}  // namespace

void fill_gemm_avx512bf16(KernelTable& table) {
  table.gemm_bf16[int(WeightKind::bf16)] = {tile_width, pair_tile_bytes, pack_pairs, scratch_none, run_plain<Bf16Dot>};
  table.gemm_bf16[int(WeightKind::f8)] = {tile_width, pair_tile_bytes, pack_pairs, scratch_f8, run_f8_dot};
}

}  // namespace shoal::cpu
