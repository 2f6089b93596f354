#pragma once
#include "kernels/cpu/vnni512_codes.h"

/// Products with formats whose factors are nibbles (Scales::nibbles): all have records of 256 columns, two blocks of
/// activations. Where codes are small as well, a group's sum of products fits 16 bits: it is multiplied with its factor
/// as a whole number, and a block costs two conversions to floats.
namespace shoal::cpu {
namespace {

constexpr int kRecordSteps = 8;

/// The factors of a block: pairs of neighbouring groups, as words of 16 bits.
template <int kGroups, bool kOwnMinima>
struct BlockFactors {
  static constexpr int kFieldsOfPair = kOwnMinima ? 2 : 1;
  static constexpr int kFields = kBlockSteps * kGroups / 2 * kFieldsOfPair;
  static constexpr int kRegisters = (kFields + 3) / 4;
  __m512i words[kRegisters];

  /// Of the record's block `half`, 0 or 1.
  static SHOAL_INLINE BlockFactors load(const QuantizedLayout& f, const std::byte* record, int half) {
    BlockFactors factors;
    const std::byte* at = record + f.factor_at;
    if constexpr (kFields < 4) {
      factors.words[0] = _mm512_srl_epi16(_mm512_loadu_si512(at), _mm_cvtsi32_si128(half * kFields * 4));
    } else {
#pragma GCC unroll 2
      for (int i = 0; i < kRegisters; ++i) factors.words[i] = _mm512_loadu_si512(at + (half * kRegisters + i) * 64);
    }
    return factors;
  }

  /// The nibbles of a pair's field.
  SHOAL_INLINE __m512i pair(int pair, int field) const {
    const int i = pair * kFieldsOfPair + field;
    return _mm512_and_si512(_mm512_srli_epi16(words[i / 4], static_cast<unsigned>(i % 4 * 4)), _mm512_set1_epi16(15));
  }
  /// The scale's nibbles of one group, as whole numbers of 32 bits.
  SHOAL_INLINE __m512i group(int group) const {
    const int i = group / 2 * kFieldsOfPair;
    const auto shift = static_cast<unsigned>(group % 2 * 16 + i % 4 * 4);
    return _mm512_and_si512(_mm512_srli_epi32(words[i / 4], shift), _mm512_set1_epi32(15));
  }
};

SHOAL_INLINE __m512i table_of_16(const void* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(table)));
}

/// Whole factors of a block's pairs of groups; minima have nibbles of their own where a step has two groups, and come
/// with the scales' where it has one.
template <int kGroups>
struct WholeFactors {
  static constexpr bool kOwnMinima = kGroups == 2;
  static constexpr __mmask64 kLowBytes = 0x5555555555555555u;
  static constexpr int kPairs = kBlockSteps * kGroups / 2;
  BlockFactors<kGroups, kOwnMinima> nibbles;
  __m512i scale_of, minimum_of;

  static SHOAL_INLINE WholeFactors of(const QuantizedLayout& f) {
    WholeFactors factors{};
    if constexpr (!kOwnMinima) {
      factors.scale_of = table_of_16(f.scale_of);
      factors.minimum_of = table_of_16(f.minimum_of);
    }
    return factors;
  }
  SHOAL_INLINE void load(const QuantizedLayout& f, const std::byte* record, int half) {
    nibbles = BlockFactors<kGroups, kOwnMinima>::load(f, record, half);
  }
  SHOAL_INLINE __m512i scales(int pair) const {
    if constexpr (kOwnMinima) return nibbles.pair(pair, 0);
    return _mm512_maskz_shuffle_epi8(kLowBytes, scale_of, nibbles.pair(pair, 0));
  }
  SHOAL_INLINE __m512i minima(int pair) const {
    if constexpr (kOwnMinima) return nibbles.pair(pair, 1);
    return _mm512_maskz_shuffle_epi8(kLowBytes, minimum_of, nibbles.pair(pair, 0));
  }
};

/// What a record's rows have in common: scale and minimum of a whole number of one.
struct WholeUnits {
  __m512 scale, minimum;

  static SHOAL_INLINE __m512 read_halves(const std::byte* at, float unit) {
    const __m512 halves = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return _mm512_mul_ps(halves, _mm512_set1_ps(unit));
  }
  static SHOAL_INLINE WholeUnits read(const QuantizedLayout& f, const std::byte* record) {
    return {read_halves(record, f.unit), read_halves(f.minimum_of ? record : record + 32, -f.minimum_unit)};
  }
};

/// Two groups' sums of products as pairs of 16 bits.
SHOAL_INLINE __m512i pair_of(__m512i first, __m512i second) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, first, _mm512_slli_epi32(second, 16));
}

/// out += (scaled * unit + taken * unit of minima) * the token's scale.
SHOAL_INLINE void add_whole(const WholeUnits& unit, __m512i scaled, __m512i taken, float of_token, float* out) {
  __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(scaled), unit.scale);
  sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(taken), unit.minimum, sum);
  _mm512_storeu_ps(out, _mm512_fmadd_ps(sum, _mm512_set1_ps(of_token), _mm512_loadu_ps(out)));
}

/// One panel of Q2_K: two groups a step, their codes in a plane.
template <int T>
void multiply_whole(const QuantizedLayout& f, const DirectStep& todo) {
  constexpr int kGroups = 2, kQuads = kQuadsOfStep / kGroups;
  using Code = Codes<2, false, 0>;
  const Code codes{};
  constexpr CodeRange kRange = Code::kRange<false>;
  constexpr int kTogether = quads_together(kRange, 2);
  WholeFactors<kGroups> factors = WholeFactors<kGroups>::of(f);
  const std::byte *x = todo.x, *record = todo.panel;
  Ahead ahead = todo.ahead;
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) _mm512_storeu_ps(todo.out + t * 16, _mm512_setzero_ps());
  for (std::int64_t c = 0; c < todo.cols; c += kRecordSteps * kStepColumns, record += f.record_bytes) {
    const WholeUnits unit = WholeUnits::read(f, record);
    const std::byte* step = record + f.head_bytes;
    for (int half = 0; half < 2; ++half) {
      factors.load(f, record, half);
      const BlockParts<const std::byte> block(x, T, kBlockSteps);
      __m512i scaled[T], taken[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) scaled[t] = taken[t] = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int s = 0; s < kBlockSteps; ++s, step += f.step_bytes) {
        for (int line = 0; line < ahead.lines; ++line, ahead.from += kLine) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead.from), _MM_HINT_T1);
        }
        const auto* bytes = reinterpret_cast<const int*>(block.bytes + s * T * kStepColumns);
        __m512i dot[kGroups][1][T];
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) dot[g][0][t] = _mm512_setzero_si512();
#pragma GCC unroll 4
          for (int q = g * kQuads; q < (g + 1) * kQuads; q += kTogether) {
            int quads[kTogether];
            __m512i code[kTogether][1];
#pragma GCC unroll 4
            for (int n = 0; n < kTogether; ++n) {
              quads[n] = q + n;
              code[n][0] = codes.quad(reinterpret_cast<const std::uint8_t*>(step), q + n);
            }
            multiply_quads<kRange>(dot[g], code, bytes, kQuadsOfStep, quads, Narrowing{});
          }
        }
        const __m512i scales = factors.scales(s);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) scaled[t] = add_pairs(scaled[t], scales, pair_of(dot[0][0][t], dot[1][0][t]));
      }
#pragma GCC unroll 4
      for (int s = 0; s < kBlockSteps; ++s) {
        const __m512i minima = factors.minima(s);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) multiply_pair(taken[t], minima, block.halves[s * T + t]);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) add_whole(unit, scaled[t], taken[t], block.scales[t], todo.out + t * 16);
      x += block_bytes_of(T, kBlockSteps);
    }
  }
}

template <int kIndex = 0>
inline DirectProduct product_with_nibbles(const QuantizedLayout& f, int width) {
  constexpr int kWidth = kDirectWidths[kIndex];
  if constexpr (kIndex + 1 < int(sizeof kDirectWidths / sizeof(int))) {
    if (width != kWidth) return product_with_nibbles<kIndex + 1>(f, width);
  }
  return multiply_whole<kWidth>;
}

}  // namespace
}  // namespace shoal::cpu
