#pragma once
#include "kernels/cpu/vnni512.h"

/// Products with AVX-512 VNNI of blocks that were expanded to bytes (gemm_quantized.inl): of formats whose codes cost
/// too much to take out to do so for every tile.
namespace shoal::cpu {
namespace {

struct Expanded512 : Convert512 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 5, 6, 7, 8};
  static constexpr bool kWholeFactors = true;
  static void begin(int) {}
  static void end() {}

  static bool is_whole(const QuantizedLayout& f) { return has_whole_factors(f); }
  static void take_pairs(const QuantizedLayout& f, const std::byte* record, int first_step, Expanded& out) {
    const int half = first_step / kBlockSteps;
    f.groups == 2 ? take_pairs_of<2>(f, record, half, out) : take_pairs_of<1>(f, record, half, out);
  }

  template <int T, int G>
  static BlockKernel kernel(const QuantizedLayout& f) {
    return has_whole_factors(f) ? multiply_whole_factors<T, G> : multiply_scales<T, G>;
  }

 private:
  template <int kGroups>
  static SHOAL_INLINE void take_pairs_of(const QuantizedLayout& f, const std::byte* record, int half, Expanded& out) {
    WholeFactors<kGroups> factors = WholeFactors<kGroups>::of(f);
    factors.load(f, record, half);
#pragma GCC unroll 4
    for (int pair = 0; pair < WholeFactors<kGroups>::kPairs; ++pair) {
      _mm512_store_si512(out.scale_pairs[pair], factors.scales(pair));
      _mm512_store_si512(out.minimum_pairs[pair], factors.minima(pair));
    }
    const WholeUnits unit = WholeUnits::read(f, record);
    _mm512_store_ps(out.unit, unit.scale);
    _mm512_store_ps(out.pair_unit, unit.minimum);
  }

  /// dot[t] += the products of group g of step s.
  template <int T, int G>
  static SHOAL_INLINE void add_products(const BlockProduct& p, int s, int g, __m512i (&dot)[T]) {
    constexpr int kQuads = kQuadsOfStep / G;
    const std::uint8_t* codes = p.codes + s * kStepCodes;
    const auto* bytes = reinterpret_cast<const int*>(p.x + s * T * kStepColumns);
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; ++i) {
      const int q = g * kQuads + i;
      const __m512i code = _mm512_load_si512(codes + q * 64);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) multiply_quad(dot[t], code, bytes[t * kQuadsOfStep + q]);
    }
  }

  template <int T, int G>
  static void multiply_scales(const BlockProduct& p) {
    __m512 sum[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
    for (int s = 0; s < p.steps; ++s) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const std::int32_t* sums = p.sums<T, G>(s, g);
        __m512i dot[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) dot[t] = p.minima ? _mm512_setzero_si512() : _mm512_set1_epi32(p.start_of(sums[t]));
        add_products<T, G>(p, s, g, dot);
        const __m512 scale = _mm512_load_ps(p.weights->scale[s * G + g]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), scale, sum[t]);
        if (!p.minima) continue;
        const __m512 minimum = _mm512_load_ps(p.weights->minimum[s * G + g]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_set1_epi32(sums[t])), minimum, sum[t]);
        }
      }
    }
    const float* of_tokens = p.parts<T>().scales;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      float* out = p.out + t * 16;
      _mm512_storeu_ps(out, _mm512_fmadd_ps(sum[t], _mm512_set1_ps(of_tokens[t]), _mm512_loadu_ps(out)));
    }
  }

  template <int T, int G>
  static void multiply_whole_factors(const BlockProduct& p) {
    constexpr int kPairs = kBlockSteps * G / 2;
    const auto parts = p.parts<T>();
    const std::int32_t* sums = G == 2 ? parts.halves : parts.pairs;
    __m512i scaled[T], taken[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) scaled[t] = taken[t] = _mm512_setzero_si512();
    for (int pair = 0; pair < kPairs; ++pair) {
      __m512i first[T], second[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) first[t] = second[t] = _mm512_setzero_si512();
      add_products<T, G>(p, G == 2 ? pair : 2 * pair, 0, first);
      add_products<T, G>(p, G == 2 ? pair : 2 * pair + 1, G - 1, second);
      const __m512i scales = _mm512_load_si512(p.weights->scale_pairs[pair]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) scaled[t] = _mm512_dpwssd_epi32(scaled[t], scales, pair_of(first[t], second[t]));
    }
#pragma GCC unroll 4
    for (int pair = 0; pair < kPairs; ++pair) {
      const __m512i minima = _mm512_load_si512(p.weights->minimum_pairs[pair]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) multiply_pair(taken[t], minima, sums[pair * T + t]);
    }
    const WholeUnits unit{_mm512_load_ps(p.weights->unit), _mm512_load_ps(p.weights->pair_unit)};
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) add_whole(unit, scaled[t], taken[t], parts.scales[t], p.out + t * 16);
  }
};

}  // namespace
}  // namespace shoal::cpu
