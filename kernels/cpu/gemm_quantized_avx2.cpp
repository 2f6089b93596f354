#include "kernels/cpu/convert_avx2.h"

namespace shoal::cpu {
namespace {

/// Pairs of products of bytes are 16 bits. As many of them are added up in those as cannot overflow before one
/// multiplication makes 32 bits of them and, where scales are whole numbers, multiplies with the scale.
constexpr int quads_together(const QuantizedLayout& f) {
  const int quads = 32767 / (2 * 127 * f.largest);
  return quads >= 8 ? 8 : quads >= 4 ? 4 : quads >= 2 ? 2 : 1;
}

/// pairs[h][t] = the sums of products of kTogether quads from `quad` of step s on, for kHalves times 8 rows from half
/// `first` on. Wide codes are signed; then their magnitudes are multiplied with activations that take over their signs.
template <int T, int kTogether, bool kWide, bool kInPlace, int kHalves>
SHOAL_INLINE void multiply_quads(const std::uint8_t* codes, const int* bytes, int quad, int first,
                                 __m256i (&pairs)[kHalves][T]) {
#pragma GCC unroll 8
  for (int q = quad; q < quad + kTogether; ++q) {
    __m256i code[kHalves], magnitude[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      code[h] = load_256(codes + q * 64 + (first + h) * 32);
      if (kInPlace) code[h] = _mm256_xor_si256(code[h], _mm256_set1_epi8(static_cast<char>(0x80)));
      magnitude[h] = kWide ? _mm256_abs_epi8(code[h]) : code[h];
    }
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      const __m256i four = _mm256_set1_epi32(bytes[q * T + t]);
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const __m256i signs_taken = kWide ? _mm256_sign_epi8(four, code[h]) : four;
        const __m256i products = _mm256_maddubs_epi16(magnitude[h], signs_taken);
        pairs[h][t] = q == quad ? products : _mm256_add_epi16(pairs[h][t], products);
        asm("" : "+x"(pairs[h][t]));  // GCC would add all products up at last, and keep them in memory until then
      }
    }
  }
}

/// 16 rows are two registers of 8. Both take a token's bytes together where registers suffice, since bringing them to
/// all rows takes as long as multiplying: three tokens then, and with wide codes one half after the other.
struct Avx2 : Convert256 {
  static constexpr int kWidths[] = {1, 2, 3};
  static constexpr bool kWideCodesAreSigned = true, kBytesInPlace = false;
  static void begin(int) {}
  static void end() {}

  static bool is_whole(const QuantizedLayout& f) { return f.super || f.nibbles; }
  static SHOAL_INLINE void take_pairs(const QuantizedLayout& f, const std::byte* record, int first_step,
                                      Expanded& out) {
    take_whole_factors<Avx2>(f, record, first_step, out);
  }
  /// In both halves of 32 bits.
  static void put_scales(__m256i scale, int group, Expanded& out) {
    store_pairs(scale, scale, out.factor_pairs[group]);
  }

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout& f) {
    const int together = quads_together(f);
    if constexpr (G == 1) {
      if (!is_whole(f)) {
        if (is_wide(f)) return together == 1 ? multiply_scales<T, 1, true> : multiply_scales<T, 2, true>;
        if (together == 8) return multiply_scales<T, 8, false>;
        return together == 4 ? multiply_scales<T, 4, false> : multiply_scales<T, 2, false>;
      }
    }
    if (is_wide(f)) {
      return together == 1 ? multiply_whole<T, G, 1, Taken::nothing> : multiply_whole<T, G, 2, Taken::nothing>;
    }
    return f.minima ? whole_kernel<T, G, Taken::minima>(together) : whole_kernel<T, G, Taken::offsets>(together);
  }

 private:
  /// What is taken off sums with whole scales: of wide codes, which are signed, nothing; offsets have the scales' unit.
  enum class Taken { nothing, offsets, minima };

  template <int T, int G, Taken kTaken>
  static BlockKernel whole_kernel(int together) {
    if (together == 8) return multiply_whole<T, G, 8 / G, kTaken>;
    return together == 4 ? multiply_whole<T, G, 4, kTaken> : multiply_whole<T, G, 2, kTaken>;
  }

  template <bool kWide>
  static constexpr int kHalvesAtOnce = kWide ? 1 : 2;

  /// sum[h][t] += the products of a step with factors of pairs: of a group's scale, or ones.
  template <int T, int G, int kTogether, bool kWide, int kHalves>
  static SHOAL_INLINE void multiply_step(const BlockProduct& p, int s, int first, const std::int32_t (*factors)[16],
                                         __m256i (&sum)[kHalves][T]) {
    const auto* bytes = reinterpret_cast<const int*>(p.x + s * T * kStepColumns);
#pragma GCC unroll 8
    for (int q = 0; q < kQuadsOfStep; q += kTogether) {
      __m256i pairs[kHalves][T];
      multiply_quads<T, kTogether, kWide, false>(p.codes + s * kStepCodes, bytes, q, first, pairs);
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        const __m256i factor =
            factors ? of_rows(factors[s * G + q * G / kQuadsOfStep], first + h) : _mm256_set1_epi16(1);
#pragma GCC unroll 3
        for (int t = 0; t < T; ++t) {
          sum[h][t] = _mm256_add_epi32(sum[h][t], _mm256_madd_epi16(pairs[h][t], factor));
        }
      }
    }
  }

  template <int T, int G, int kTogether, Taken kTaken>
  static void multiply_whole(const BlockProduct& p) {
    constexpr bool kWide = kTaken == Taken::nothing;
    constexpr int kHalves = kHalvesAtOnce<kWide>;
    for (int first = 0; first < 2; first += kHalves) {
      __m256i scaled[kHalves][T];
      __m256 sum[kHalves][T];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 3
        for (int t = 0; t < T; ++t) scaled[h][t] = _mm256_setzero_si256();
      }
      for (int s = 0; s < kBlockSteps; ++s) {
        multiply_step<T, G, kTogether, kWide>(p, s, first, p.weights->factor_pairs, scaled);
      }
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        if constexpr (kTaken == Taken::offsets) {
          __m256i taken[T];
          multiply_minima<T, G>(p, first + h, taken);
#pragma GCC unroll 3
          for (int t = 0; t < T; ++t) scaled[h][t] = _mm256_sub_epi32(scaled[h][t], taken[t]);
        }
        const __m256 unit = of_rows(p.weights->unit, first + h);
#pragma GCC unroll 3
        for (int t = 0; t < T; ++t) {
          sum[h][t] = _mm256_cvtepi32_ps(scaled[h][t]);
          if constexpr (kTaken != Taken::minima) sum[h][t] = _mm256_mul_ps(sum[h][t], unit);
        }
      }
      if constexpr (kTaken == Taken::minima) {
        add_with_minima<T, G>(p, first, sum);
      } else {
        add_sums<T>(p, first, sum);
      }
    }
  }

  template <int T, int kTogether, bool kWide>
  static void multiply_scales(const BlockProduct& p) {
    constexpr int kHalves = kHalvesAtOnce<kWide>;
    const Start start(p);
    for (int first = 0; first < 2; first += kHalves) {
      __m256 sum[kHalves][T];
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 3
        for (int t = 0; t < T; ++t) sum[h][t] = _mm256_setzero_ps();
      }
      for (int s = 0; s < p.steps; ++s) {
        const std::int32_t* sums = p.sums<T, 1>(s, 0);
        __m256i dot[kHalves][T];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 3
          for (int t = 0; t < T; ++t) dot[h][t] = kWide ? _mm256_setzero_si256() : start.of(sums[t]);
        }
        multiply_step<T, 1, kTogether, kWide>(p, s, first, nullptr, dot);
        add_scaled<T>(p, first, s, sums, dot, sum);
      }
      add_sums<T>(p, first, sum);
    }
  }
};

/// Codes of 8 bits.
struct Avx2Bytes : Avx2 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 6};
  static constexpr bool kBytesInPlace = true, kKnowsLayouts = false;

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout&) {
    return multiply_bytes<T>;
  }

 private:
  template <int T>
  static void multiply_bytes(const BlockProduct& p) {
    constexpr int kHalves = T <= 2 ? 2 : 1;
    for (int first = 0; first < 2; first += kHalves) {
      __m256 sum[kHalves][T];
      load_sums<T>(p, first, sum);
      const std::uint8_t* codes = p.codes;
      const std::byte* x = p.x;
      for (int s = 0; s < p.steps; ++s, codes += p.code_stride, x += block_bytes_of(T, kFineSteps)) {
        const BlockParts<const std::byte> block(x, T, kFineSteps);
        if (first == 0) p.ask_ahead(codes);
        __m256i dot[kHalves][T];
#pragma GCC unroll 8
        for (int q = 0; q < kQuadsOfStep; ++q) {
          __m256i pairs[kHalves][T];
          multiply_quads<T, 1, true, true>(codes, reinterpret_cast<const int*>(block.bytes), q, first, pairs);
#pragma GCC unroll 2
          for (int h = 0; h < kHalves; ++h) {
#pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
              const __m256i products = _mm256_madd_epi16(pairs[h][t], _mm256_set1_epi16(1));
              dot[h][t] = q == 0 ? products : _mm256_add_epi32(dot[h][t], products);
              asm("" : "+x"(dot[h][t]));
            }
          }
        }
        add_fine<T>(p, first, s, block, dot, sum);
      }
      store_sums<T>(p, first, sum);
    }
  }
};

}  // namespace

void fill_quantized_avx2(KernelTable& table) { fill_quantized<Avx2, Avx2Bytes>(table); }

}  // namespace shoal::cpu
