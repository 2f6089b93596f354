#include "kernels/cpu/simd_avx2.h"
// These need the operations above.
#include "kernels/cpu/coded_avx2.h"
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

/// 16 rows are two registers of 8. Sums of two products of bytes must fit 16 bits, so wide codes are signed and their
/// magnitudes are multiplied with activations that take over their signs.
struct Avx2 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 6};
  static void begin(int) {}
  static void end() {}
  static constexpr bool kWideCodesAreSigned = true, kWholeFactors = false;

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
  static void take_plane(const std::uint8_t* from, std::uint8_t* codes) {
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
    const __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    for (int i = 0; i < kStepCodes; i += 32) {
      auto* p = reinterpret_cast<__m256i*>(codes + i);
      _mm256_store_si256(p, _mm256_shuffle_epi8(entries, _mm256_load_si256(p)));
    }
  }

  /// 8 of the 16 rows, from row `first` on.
  template <int T, int G, bool kWide>
  static __attribute__((always_inline)) void multiply_half(const BlockProduct& p, int first) {
    constexpr int kQuads = kQuadsOfStep / G;
    __m256 sum[T];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) sum[t] = _mm256_setzero_ps();
    const std::uint8_t* code = p.weights->code + first * 4;
    for (int s = 0; s < p.steps; ++s, code += kStepCodes) {
      const auto* bytes = reinterpret_cast<const int*>(p.x + s * T * kStepColumns);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const std::int32_t* sums = p.sums<T, G>(s, g);
        __m256i dot[T];
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) dot[t] = _mm256_set1_epi32(p.start_of(sums[t]));
#pragma GCC unroll 8
        for (int q = g * kQuads; q < (g + 1) * kQuads; ++q) {
          const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(code + q * 64));
          const __m256i magnitude = kWide ? _mm256_abs_epi8(w) : w;
#pragma GCC unroll 6
          for (int t = 0; t < T; ++t) {
            const __m256i four = _mm256_set1_epi32(bytes[q * T + t]);
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, kWide ? _mm256_sign_epi8(four, w) : four);
            dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
          }
        }
        const __m256 scale = _mm256_load_ps(p.weights->scale[s * G + g] + first);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) sum[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), scale, sum[t]);
        if (!p.minima) continue;
        const __m256 minimum = _mm256_load_ps(p.weights->minimum[s * G + g] + first);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
          sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(static_cast<float>(sums[t])), minimum, sum[t]);
        }
      }
    }
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      float* out = p.out + t * 16 + first;
      _mm256_storeu_ps(out, _mm256_fmadd_ps(sum[t], _mm256_set1_ps(p.parts<T>().scales[t]), _mm256_loadu_ps(out)));
    }
  }

  template <int T, int G>
  static void multiply(const BlockProduct& p) {
    for (const int first : {0, 8}) {
      p.wide ? multiply_half<T, G, true>(p, first) : multiply_half<T, G, false>(p, first);
    }
  }
};

}  // namespace

void fill_quantized_avx2(KernelTable& table) { fill_quantized<Avx2>(table); }

}  // namespace shoal::cpu
