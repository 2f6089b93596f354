#pragma once
#include "kernels/cpu/vnni512.h"

/// Products with AVX-512 of blocks that were expanded to bytes (gemm_quantized.inl): of formats whose codes cost
/// too much to take out for every tile, and of all where tiles are many. Codes are as Codes<> has them: shifted left,
/// but for trits, those in tables and those with whole factors.
namespace shoal::cpu {
namespace {

struct Expanded512 : Convert512 {
  static constexpr int kWidths[] = {1, 2, 3, 4, 5, 6, 7, 8};
  static constexpr bool kWholeFactors = true;
  static constexpr int kPanels = 2;
  static void begin(int) {}
  static void end() {}

  static bool is_whole(const QuantizedLayout& f) { return has_whole_factors(f); }
  static void take_pairs(const QuantizedLayout& f, const std::byte* record, int first_step, Expanded& out) {
    const int half = first_step / kBlockSteps;
    f.groups == 2 ? take_pairs_of<2>(f, record, half, out) : take_pairs_of<1>(f, record, half, out);
  }

  template <int T, int G, int P>
  static BlockKernel kernel(const QuantizedLayout& f) {
    constexpr CodeRange kWide = range_for(CodeRange::any), kCentred = range_for(CodeRange::centred),
                        kShifted = range_for(CodeRange::shifted), kSmall = range_for(CodeRange::small);
    const auto of_shifted = [&]<Offsets kOffsets>() -> BlockKernel {
      return f.bits > 5 ? multiply_scales<T, G, P, kOffsets, kShifted, quads_together(kShifted, 6)>
                        : multiply_scales<T, G, P, kOffsets, kShifted, quads_together(kShifted, 5)>;
    };
    if (has_whole_factors(f)) return multiply_whole_factors<T, G, P>;
    if (is_centred(f)) {
      return is_wide(f) ? multiply_scales<T, G, P, Offsets::centred, kCentred>
                        : of_shifted.template operator()<Offsets::centred>();
    }
    if (has_paired_minima(f)) return of_shifted.template operator()<Offsets::paired>();
    if (is_wide(f)) return multiply_scales<T, G, P, Offsets::other, kWide>;
    return f.codes.coding == Coding::planes
               ? of_shifted.template operator()<Offsets::other>()
               : multiply_scales<T, G, P, Offsets::other, kSmall, quads_together(kSmall, 2)>;
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

  /// dot[p][t] += the products of group g of step s.
  template <CodeRange kRange, int kTogether, int T, int G, int P>
  static SHOAL_INLINE void add_products(const BlockProduct& todo, const Narrowing& narrowing, int s, int g,
                                        __m512i (&dot)[P][T]) {
    constexpr int kQuads = kQuadsOfStep / G;
    const auto* bytes = reinterpret_cast<const int*>(todo.x + s * T * kStepColumns);
#pragma GCC unroll 8
    for (int i = 0; i < kQuads; i += kTogether) {
      int quads[kTogether];
      __m512i code[kTogether][P];
#pragma GCC unroll 4
      for (int n = 0; n < kTogether; ++n) {
        quads[n] = g * kQuads + i + n;
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          code[n][p] = _mm512_load_si512(todo.weights[p].code + s * kStepCodes + quads[n] * 64);
        }
      }
      multiply_quads<kRange>(dot, code, bytes, kQuadsOfStep, quads, narrowing);
    }
  }

  template <int T, int G, int P, Offsets kOffsets, CodeRange kRange, int kTogether = 1>
  static void multiply_scales(const BlockProduct& todo) {
    constexpr bool kStartsBelow = kOffsets == Offsets::centred && sums_need_offset(kRange);
    const auto parts = todo.parts<T>();
    const Expanded* const weights = todo.weights;
    const Narrowing narrowing = Narrowing::of(todo.code_shift);
    float* const out = todo.out;
    const int steps = todo.steps;
    __m512 sum[P][T];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) sum[p][t] = _mm512_setzero_ps();
    }
    for (int s = 0; s < steps; ++s) {
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const std::int32_t* sums = todo.sums<T, G>(s, g);
        __m512i dot[P][T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512i start = kStartsBelow ? _mm512_set1_epi32(sums[t]) : _mm512_setzero_si512();
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) dot[p][t] = start;
        }
        add_products<kRange, kTogether, T, G>(todo, narrowing, s, g, dot);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const __m512 scale = _mm512_load_ps(weights[p].scale[s * G + g]);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][t]), scale, sum[p][t]);
          if constexpr (kOffsets != Offsets::other) continue;
          const __m512 minimum = _mm512_load_ps(weights[p].minimum[s * G + g]);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_set1_epi32(sums[t])), minimum, sum[p][t]);
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      if constexpr (kOffsets == Offsets::paired) {
        const __m512i first = _mm512_load_si512(weights[p].pairs[0]), second = _mm512_load_si512(weights[p].pairs[1]);
        const __m512 unit = _mm512_load_ps(weights[p].pair_unit);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          __m512i taken = _mm512_setzero_si512();
          multiply_pair(taken, first, parts.pairs[t]);
          multiply_pair(taken, second, parts.pairs[T + t]);
          sum[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(taken), unit, sum[p][t]);
        }
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        float* to = out + (p * T + t) * 16;
        _mm512_storeu_ps(to, _mm512_fmadd_ps(sum[p][t], _mm512_set1_ps(parts.scales[t]), _mm512_loadu_ps(to)));
      }
    }
  }

  template <int T, int G, int P>
  static void multiply_whole_factors(const BlockProduct& todo) {
    constexpr int kPairs = kBlockSteps * G / 2;
    constexpr CodeRange kRange = range_for(CodeRange::small);
    constexpr int kTogether = quads_together(kRange, 2);
    const auto parts = todo.parts<T>();
    const std::int32_t* sums = G == 2 ? parts.halves : parts.pairs;
    __m512i scaled[P][T];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) scaled[p][t] = _mm512_setzero_si512();
    }
    for (int pair = 0; pair < kPairs; ++pair) {
      if constexpr (P == 1) {
        __m512i first[P][T], second[P][T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) first[0][t] = second[0][t] = _mm512_setzero_si512();
        add_products<kRange, kTogether, T, G>(todo, Narrowing{}, G == 2 ? pair : 2 * pair, 0, first);
        add_products<kRange, kTogether, T, G>(todo, Narrowing{}, G == 2 ? pair : 2 * pair + 1, G - 1, second);
        const __m512i scales = _mm512_load_si512(todo.weights->scale_pairs[pair]);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          scaled[0][t] = add_pairs(scaled[0][t], scales, pair_of(first[0][t], second[0][t]));
        }
        continue;
      }
      // Sums of two groups of two panels are more than registers hold: each is multiplied by itself.
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        __m512i dot[P][T];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) dot[p][t] = _mm512_setzero_si512();
        }
        add_products<kRange, kTogether, T, G>(todo, Narrowing{}, G == 2 ? pair : 2 * pair + i, G == 2 ? i : 0, dot);
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const __m512i pairs = _mm512_load_si512(todo.weights[p].scale_pairs[pair]);
          const __m512i scale = _mm512_srli_epi32(i == 0 ? _mm512_slli_epi32(pairs, 16) : pairs, 16);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) scaled[p][t] = add_pairs(scaled[p][t], scale, dot[p][t]);
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const Expanded& weights = todo.weights[p];
      const WholeUnits unit{_mm512_load_ps(weights.unit), _mm512_load_ps(weights.pair_unit)};
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        __m512i taken = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int pair = 0; pair < kPairs; ++pair) {
          multiply_pair(taken, _mm512_load_si512(weights.minimum_pairs[pair]), sums[pair * T + t]);
        }
        add_whole(unit, scaled[p][t], taken, parts.scales[t], todo.out + (p * T + t) * 16);
      }
    }
  }
};

}  // namespace
}  // namespace shoal::cpu
