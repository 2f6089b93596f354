#pragma once
#include "kernels/cpu/convert_avx512.h"
// The products need the operations above.
#include "kernels/cpu/gemm_quantized.inl"

namespace shoal::cpu {
namespace {

/// Quantized products with AVX-512 VNNI.
struct Vnni512 : Convert512 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, 12};
  static constexpr int kTokensOfTiles = 0;
  static void begin(int) {}
  static void end() {}

  template <int T, int G>
  static void multiply(const RecordProduct& p) {
    constexpr int kQuads = kQuadsOfStep / G;  // of a scale
    __m512 sum[T];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) sum[t] = _mm512_loadu_ps(p.out + t * 16);
    const std::byte* x = p.x;
    const std::uint8_t* code = p.weights->code;
    for (int s = 0; s < p.steps; ++s) {
      const auto* bytes = reinterpret_cast<const int*>(x);
      const auto* scales = reinterpret_cast<const float*>(x + T * kStepColumns);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        __m512i dot[T];
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) dot[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int q = 0; q < kQuads; ++q) {
          const __m512i w = _mm512_load_si512(code + (g * kQuads + q) * 64);
#pragma GCC unroll 12
          for (int t = 0; t < T; ++t) {
            dot[t] = _mm512_dpbusd_epi32(dot[t], w, _mm512_set1_epi32(bytes[(g * kQuads + q) * T + t]));
          }
        }
        const __m512 scale = _mm512_load_ps(p.weights->scale[s * G + g]);
        const __m512 minimum = _mm512_load_ps(p.weights->minimum[s * G + g]);
        const float* sums = scales + (G == 1 ? 1 : 2 + g) * T;
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
          const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(scales[t]));
          sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), both, sum[t]);
          sum[t] = _mm512_fnmadd_ps(minimum, _mm512_set1_ps(sums[t]), sum[t]);
        }
      }
      code += kStepCodes;
      x += step_bytes_of(T);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) _mm512_storeu_ps(p.out + t * 16, sum[t]);
  }
};

}  // namespace
}  // namespace shoal::cpu
