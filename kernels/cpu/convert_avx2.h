#pragma once
#include "kernels/cpu/simd_avx2.h"
// After the instructions they use.
#include "kernels/cpu/coded_avx2.h"
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

struct PackAvx2 {
  static float quantize(const float* x, int n, std::int8_t* q) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 8) largest = _mm256_max_epu32(largest, _mm256_and_si256(load_256(x + i), magnitude));
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
    const auto bits = static_cast<std::uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1))));
    const float most = __builtin_bit_cast(float, bits);
    const __m256 inverse = _mm256_set1_ps(bits != 0 ? 127.0f / most : 0.0f);
    const __m256 round = _mm256_set1_ps(12582912.0f);
    const auto whole = [&](int i) __attribute__((always_inline)) {
      const __m256 sum = _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse), round);
      return _mm256_and_si256(_mm256_castps_si256(sum), _mm256_set1_epi32(255));
    };
    // Packing goes by halves of registers; what is out of order then comes back as fours of bytes.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < n; i += 32) {
      const __m256i words = _mm256_packus_epi32(whole(i), whole(i + 8));
      const __m256i more = _mm256_packus_epi32(whole(i + 16), whole(i + 24));
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, more), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), bytes);
    }
    return most / 127.0f;
  }
  static void add_halves(const std::int8_t* q, int& low, int& high) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_256(q));
    __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    quads = _mm256_add_epi32(quads, _mm256_shuffle_epi32(quads, 0x4e));
    quads = _mm256_add_epi32(quads, _mm256_shuffle_epi32(quads, 0xb1));
    low = _mm256_cvtsi256_si32(quads);
    high = _mm256_extract_epi32(quads, 4);
  }
};

/// The conversions of a quantized record with AVX2. Scales that are whole numbers with one factor for a record (of all
/// K and IQ formats) stay so: a block then adds to a sum
///     (sum of scale * products) * unit - (sum of minimum * sum of bytes) * unit of minima
/// where an offset is a minimum too, of scale * offset, and of the same unit.
struct Convert256 {
  using Pack = PackAvx2;
  static constexpr bool kWholeFactors = true, kKnowsLayouts = true;
  static constexpr int kPanels = 1;

  static void halves(const std::byte* from, float* to) {
    const auto* p = reinterpret_cast<const __m128i*>(from);
    _mm256_store_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(p)));
    _mm256_store_ps(to + 8, _mm256_cvtph_ps(_mm_loadu_si128(p + 1)));
  }

  static void multiply_signed(const float* by, const std::byte* bytes, float* to) {
    for (int r = 0; r < 16; r += 8) {
      const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + r)));
      _mm256_store_ps(to + r, _mm256_mul_ps(_mm256_load_ps(by + r), _mm256_cvtepi32_ps(wide)));
    }
  }
  static void multiply_unsigned(const float* by, const std::byte* bytes, float* to) {
    for (int r = 0; r < 16; r += 8) {
      const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + r)));
      _mm256_store_ps(to + r, _mm256_mul_ps(_mm256_load_ps(by + r), _mm256_cvtepi32_ps(wide)));
    }
  }

  static void take_nibbles(const std::byte* words, int shift, const std::uint8_t* table, std::uint8_t* to) {
    const __m128i count = _mm_cvtsi32_si128(shift);
    __m128i four[4];
    for (int i = 0; i < 4; ++i) {
      const __m128i word = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words) + i);
      four[i] = _mm_and_si128(_mm_srl_epi32(word, count), _mm_set1_epi32(15));
    }
    const __m128i nibbles = _mm_packus_epi16(_mm_packs_epi32(four[0], four[1]), _mm_packs_epi32(four[2], four[3]));
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    _mm_store_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(entries, nibbles));
  }

  template <int kWidth, int kLow>
  static SHOAL_INLINE void take_plane(const std::uint8_t* from, std::uint8_t* codes) {
    const __m256i mask = _mm256_set1_epi8((1 << kWidth) - 1);
    for (int half = 0; half < 64; half += 32) {
      __m256i plane[kWidth];
#pragma GCC unroll 4
      for (int i = 0; i < kWidth; ++i) plane[i] = load_256(from + i * 64 + half);
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) {
        auto* to = reinterpret_cast<__m256i*>(codes + q * 64 + half);
        __m256i bits = _mm256_and_si256(_mm256_srli_epi64(plane[q % kWidth], q / kWidth * kWidth), mask);
        if constexpr (kLow > 0) bits = _mm256_or_si256(_mm256_slli_epi64(bits, kLow), _mm256_load_si256(to));
        _mm256_store_si256(to, bits);
      }
    }
  }

  static void take_coded(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
    take_coded_step(f, record, step, codes);
  }
  static void look_up(std::uint8_t* codes, const std::uint8_t* table) {
    const __m256i entries = table_of_32(table);
    for (int i = 0; i < kStepCodes; i += 32) {
      auto* p = reinterpret_cast<__m256i*>(codes + i);
      _mm256_store_si256(p, _mm256_shuffle_epi8(entries, _mm256_load_si256(p)));
    }
  }

  /// Isa::put_scales(scale, group, out) keeps the scales of a group's 16 rows.
  template <class Isa>
  static SHOAL_INLINE void take_whole_factors(const QuantizedLayout& f, const std::byte* record, int first,
                                              Expanded& out) {
    const int groups = kBlockSteps * f.groups, shift = f.groups - 1;
    const bool wide = Isa::kWideCodesAreSigned && f.table;
    const __m256i offset = _mm256_set1_epi16(static_cast<short>(static_cast<int>(f.offset) - (wide ? 128 : 0)));
    __m256i before = _mm256_setzero_si256();  // of the pair's first group
    for (int group = 0; group < groups; ++group) {
      const int step = first + (group >> shift), of_step = group & shift;
      const std::byte* scales = record + f.head_bytes + step * f.step_bytes + of_step * 16;
      const std::byte* minima = scales + f.groups * 16;
      FactorBytes factors;
      if (f.nibbles) {
        take_factors<Isa>(f, record, step * f.groups + of_step, factors);
        scales = reinterpret_cast<const std::byte*>(factors.scale);
        minima = reinterpret_cast<const std::byte*>(factors.minimum);
      }
      const __m256i scale = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
      Isa::put_scales(scale, group, out);
      const __m256i minimum = f.minima ? _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(minima)))
                                       : _mm256_mullo_epi16(scale, offset);
      if (group % 2 == 1) store_pairs(before, minimum, out.minimum_pairs[group / 2]);
      before = minimum;
    }
    halves(record, out.unit);
#pragma GCC ivdep
    for (int r = 0; r < 16; ++r) out.unit[r] *= f.unit;
    if (!f.minima) return;
    halves(record + (f.minimum_of ? 0 : 32), out.pair_unit);
#pragma GCC ivdep
    for (int r = 0; r < 16; ++r) out.pair_unit[r] *= -f.minimum_unit;
  }

  /// 16 rows' numbers of 16 bits, two for each row.
  static void store_pairs(__m256i first, __m256i second, std::int32_t* to) {
    const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_store_si256(reinterpret_cast<__m256i*>(to) + 1, _mm256_permute2x128_si256(low, high, 0x31));
  }

  /// What sums of products start with.
  struct Start {
    __m128i shift;
    __m256i mask;

    explicit Start(const BlockProduct& p)
        : shift(_mm_cvtsi32_si128(p.start)), mask(_mm256_set1_epi32(p.start < 32 ? -1 : 0)) {}
    SHOAL_INLINE __m256i of(const std::int32_t& sum) const {
      return _mm256_and_si256(_mm256_sra_epi32(_mm256_set1_epi32(sum), shift), mask);
    }
  };

  /// 8 of the floats of a group's rows, or of all groups'.
  static SHOAL_INLINE __m256 of_rows(const float* floats, int half) { return _mm256_load_ps(floats + half * 8); }
  static SHOAL_INLINE __m256i of_rows(const std::int32_t* pairs, int half) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs) + half);
  }

  /// taken[t] = the block's minima times the sums of a token's bytes, of the 8 rows of a half.
  template <int T, int G>
  static SHOAL_INLINE void multiply_minima(const BlockProduct& p, int half, __m256i (&taken)[T]) {
    const auto parts = p.parts<T>();
    const std::int32_t* sums = G == 2 ? parts.halves : parts.pairs;
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) taken[t] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int pair = 0; pair < kBlockSteps * G / 2; ++pair) {
      const __m256i minima = of_rows(p.weights->minimum_pairs[pair], half);
#pragma GCC unroll 3
      for (int t = 0; t < T; ++t) {
        const __m256i of_token = _mm256_set1_epi32(sums[pair * T + t]);
        taken[t] = _mm256_add_epi32(taken[t], _mm256_madd_epi16(minima, of_token));
      }
    }
  }

  /// out += (scaled * unit - what minima take off) * the tokens' scales, for kHalves times 8 rows from half `first` on.
  template <int T, int G, int kHalves>
  static SHOAL_INLINE void add_with_minima(const BlockProduct& p, int first, const __m256 (&scaled)[kHalves][T]) {
    __m256 sum[kHalves][T];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m256i taken[T];
      multiply_minima<T, G>(p, first + h, taken);
      const __m256 unit = of_rows(p.weights->unit, first + h);
      const __m256 unit_of_minima = of_rows(p.weights->pair_unit, first + h);
#pragma GCC unroll 3
      for (int t = 0; t < T; ++t) {
        sum[h][t] = _mm256_mul_ps(scaled[h][t], unit);
        sum[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(taken[t]), unit_of_minima, sum[h][t]);
      }
    }
    add_sums<T>(p, first, sum);
  }

  /// out += sums * the tokens' scales.
  template <int T, int kHalves>
  static SHOAL_INLINE void add_sums(const BlockProduct& p, int first, const __m256 (&sum)[kHalves][T]) {
    const float* of_tokens = p.parts<T>().scales;
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        float* out = p.out + t * 16 + (first + h) * 8;
        _mm256_storeu_ps(out, _mm256_fmadd_ps(sum[h][t], _mm256_set1_ps(of_tokens[t]), _mm256_loadu_ps(out)));
      }
    }
  }

  /// sum += dot * scale + what minima take off, as floats.
  template <int T, int kHalves>
  static SHOAL_INLINE void add_scaled(const BlockProduct& p, int first, int group, const std::int32_t* sums,
                                      const __m256i (&dot)[kHalves][T], __m256 (&sum)[kHalves][T]) {
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256 scale = of_rows(p.weights->scale[group], first + h);
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) sum[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h][t]), scale, sum[h][t]);
      if (!p.minima) continue;
      const __m256 minimum = of_rows(p.weights->minimum[group], first + h);
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        const __m256 of_token = _mm256_cvtepi32_ps(_mm256_set1_epi32(sums[t]));
        sum[h][t] = _mm256_fmadd_ps(of_token, minimum, sum[h][t]);
      }
    }
  }

  /// The same for a block of activations of one step, whose scales come at once: sum += (...) * the tokens' scales.
  template <int T, int kHalves>
  static SHOAL_INLINE void add_fine(const BlockProduct& p, int first, int step,
                                    const BlockParts<const std::byte>& block, const __m256i (&dot)[kHalves][T],
                                    __m256 (&sum)[kHalves][T]) {
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256 scale = of_rows(p.weights->scale[step], first + h);
      __m256 scaled[T];
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) scaled[t] = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[h][t]), scale);
      if (p.minima) {
        const __m256 minimum = of_rows(p.weights->minimum[step], first + h);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
          const __m256 of_token = _mm256_cvtepi32_ps(_mm256_set1_epi32(block.sums[t]));
          scaled[t] = _mm256_fmadd_ps(of_token, minimum, scaled[t]);
        }
      }
#pragma GCC unroll 6
      for (int t = 0; t < T; ++t) {
        sum[h][t] = _mm256_fmadd_ps(scaled[t], _mm256_set1_ps(block.scales[t]), sum[h][t]);
      }
    }
  }
  template <int T, int kHalves>
  static SHOAL_INLINE void load_sums(const BlockProduct& p, int first, __m256 (&sum)[kHalves][T]) {
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) sum[h][t] = _mm256_loadu_ps(p.out + t * 16 + (first + h) * 8);
    }
  }
  template <int T, int kHalves>
  static SHOAL_INLINE void store_sums(const BlockProduct& p, int first, const __m256 (&sum)[kHalves][T]) {
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) _mm256_storeu_ps(p.out + t * 16 + (first + h) * 8, sum[h][t]);
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
