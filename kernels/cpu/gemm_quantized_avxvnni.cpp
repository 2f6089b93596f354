#include "kernels/cpu/convert_avx2.h"

namespace shoal::cpu {
namespace {

/// AVX2 with VNNI (Intel's processors without AVX-512 since 2021): one instruction multiplies four columns of 8 rows
/// and adds them up in 32 bits. Two registers of 8 rows and three tokens are what registers suffice for.
struct AvxVnni : Convert256 {
  static constexpr int kWidths[] = {1, 2, 3};
  static constexpr bool kWideCodesAreSigned = false, kBytesInPlace = true;
  static void begin(int) {}
  static void end() {}

  /// Other offsets are taken off sums of products while these are integers.
  static bool is_whole(const QuantizedLayout& f) { return (f.super || f.nibbles) && f.minima; }
  static SHOAL_INLINE void take_pairs(const QuantizedLayout& f, const std::byte* record, int first_step,
                                      Expanded& out) {
    take_whole_factors<AvxVnni>(f, record, first_step, out);
  }
  static void put_scales(__m256i scale, int group, Expanded& out) {
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(scale));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(scale, 1));
    _mm256_store_ps(out.scale[group], _mm256_cvtepi32_ps(low));
    _mm256_store_ps(out.scale[group] + 8, _mm256_cvtepi32_ps(high));
  }

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout& f) {
    if constexpr (G == 1) {
      if (f.bits == 8) return multiply_bytes<T>;
    }
    return is_whole(f) ? multiply<T, G, true> : multiply<T, G, false>;
  }

 private:
  template <int T, int kQuads>
  static SHOAL_INLINE void multiply_quads(const std::uint8_t* codes, const std::byte* x, int first,
                                          __m256i (&dot)[2][T]) {
    const auto* bytes = reinterpret_cast<const int*>(x);
#pragma GCC unroll 8
    for (int q = first; q < first + kQuads; ++q) {
      const __m256i low = load_256(codes + q * 64), high = load_256(codes + q * 64 + 32);
#pragma GCC unroll 3
      for (int t = 0; t < T; ++t) {
        const __m256i four = _mm256_set1_epi32(bytes[q * T + t]);
        dot[0][t] = _mm256_dpbusd_avx_epi32(dot[0][t], low, four);
        dot[1][t] = _mm256_dpbusd_avx_epi32(dot[1][t], high, four);
      }
    }
  }

  template <int T, int G, bool kWhole>
  static void multiply(const BlockProduct& p) {
    constexpr int kQuads = kQuadsOfStep / G;
    const Start start(p);
    __m256 sum[2][T];
#pragma GCC unroll 3
    for (int t = 0; t < T; ++t) sum[0][t] = sum[1][t] = _mm256_setzero_ps();
    for (int s = 0; s < p.steps; ++s) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const std::int32_t* sums = p.sums<T, G>(s, g);
        __m256i dot[2][T];
#pragma GCC unroll 3
        for (int t = 0; t < T; ++t) dot[0][t] = dot[1][t] = kWhole ? _mm256_setzero_si256() : start.of(sums[t]);
        multiply_quads<T, kQuads>(p.codes + s * kStepCodes, p.x + s * T * kStepColumns, g * kQuads, dot);
        if constexpr (kWhole) {
#pragma GCC unroll 2
          for (int h = 0; h < 2; ++h) {
            const __m256 scale = of_rows(p.weights->scale[s * G + g], h);
#pragma GCC unroll 3
            for (int t = 0; t < T; ++t) sum[h][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[h][t]), scale, sum[h][t]);
          }
        } else {
          add_scaled<T>(p, 0, s * G + g, sums, dot, sum);
        }
      }
    }
    if constexpr (kWhole) {
      add_with_minima<T, G>(p, 0, sum);
    } else {
      add_sums<T>(p, 0, sum);
    }
  }

  template <int T>
  static void multiply_bytes(const BlockProduct& p) {
    const Start start(p);
    __m256 sum[2][T];
    load_sums<T>(p, 0, sum);
    const std::uint8_t* codes = p.codes;
    const std::byte* x = p.x;
    for (int s = 0; s < p.steps; ++s, codes += p.code_stride, x += block_bytes_of(T, kFineSteps)) {
      const BlockParts<const std::byte> block(x, T, kFineSteps);
      p.ask_ahead(codes);
      __m256i dot[2][T];
#pragma GCC unroll 3
      for (int t = 0; t < T; ++t) dot[0][t] = dot[1][t] = start.of(block.sums[t]);
      multiply_quads<T, kQuadsOfStep>(codes, block.bytes, 0, dot);
      add_fine<T>(p, 0, s, block, dot, sum);
    }
    store_sums<T>(p, 0, sum);
  }
};

}  // namespace

void fill_quantized_avxvnni(KernelTable& table) { fill_quantized<AvxVnni>(table); }

}  // namespace shoal::cpu
