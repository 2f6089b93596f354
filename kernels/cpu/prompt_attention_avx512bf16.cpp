#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/bf16_dot.h"
// What follows needs the operations above.
#include "kernels/cpu/prompt_attention.inl"

namespace shoal::cpu {
namespace {

/// Keys and values in BF16, with FP32 sums.
struct Bf16Prompt {
  using Element = std::uint16_t;
  using Weight = std::int32_t;  // of two positions
  static constexpr int kWeights = kPairs, kWide = kQueryTile, kNarrow = kFewQueries;
  static constexpr int kRegisters = 2;
  static_assert(kPromptColumns == kRegisters * 16);

  static void take_query(const float* row, std::int64_t columns, std::uint16_t* to) {
    for (std::int64_t c = 0; c < columns; c += 32) {
      const std::int64_t left = columns - c;
      const __mmask16 there = left >= 32 ? __mmask16{0xffff} : first_lanes(left / 2);
      _mm512_mask_storeu_epi32(to + c, there, load_pairs(row, c, columns));
    }
  }

  template <int T>
  static SHOAL_INLINE void score(const std::uint16_t* q, std::int64_t columns, const std::uint16_t* keys,
                                 float* scores) {
    const auto* const pairs_of = reinterpret_cast<const std::int32_t*>(q);
    const std::int64_t pairs = columns / 2;
    __m512 sum[T][kRegisters];
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) sum[t][r] = _mm512_setzero_ps();
    }
    for (std::int64_t i = 0; i < pairs; ++i, keys += 2 * kPromptBlock) {
      const __m512i first = _mm512_loadu_si512(keys), second = _mm512_loadu_si512(keys + 32);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
        const __m512i pair = _mm512_set1_epi32(pairs_of[t * pairs + i]);
        sum[t][0] = add_pairs(sum[t][0], first, pair);
        sum[t][1] = add_pairs(sum[t][1], second, pair);
      }
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; ++r) _mm512_storeu_ps(scores + t * kBlock + r * 16, sum[t][r]);
    }
  }

  static float soften(float* scores, int positions, float scale, float& largest, float& sum, std::int32_t* weights) {
    return soften_to_pairs(scores, positions, scale, largest, sum, weights);
  }

  template <int T>
  static SHOAL_INLINE void weigh(const std::int32_t* weights, const float* factor, const std::uint16_t* values,
                                 int positions, std::int64_t dim, float* out) {
    const int pairs = (positions + 1) / 2;
    // A later position's values may be infinite: they are left out, as a weight of zero would not do.
    const __mmask32 of_last = positions % 2 == 0 ? 0xffffffffu : 0x55555555u;
    for (std::int64_t c = 0; c < dim; c += kPromptColumns) {
      __m512 sum[T][kRegisters];
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) {
          sum[t][r] = _mm512_mul_ps(_mm512_loadu_ps(out + t * dim + c + r * 16), _mm512_set1_ps(factor[t]));
        }
      }
      const auto add = [&](int pair, __mmask32 seen) __attribute__((always_inline)) {
        const std::uint16_t* x = values + 2 * (pair * dim + c);
        const __m512i first = _mm512_maskz_loadu_epi16(seen, x), second = _mm512_maskz_loadu_epi16(seen, x + 32);
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t) {
          const __m512i weight = _mm512_set1_epi32(weights[t * kPairs + pair]);
          sum[t][0] = add_pairs(sum[t][0], first, weight);
          sum[t][1] = add_pairs(sum[t][1], second, weight);
        }
      };
      for (int pair = 0; pair < pairs - 1; ++pair) add(pair, 0xffffffffu);
      add(pairs - 1, of_last);
#pragma GCC unroll 12
      for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; ++r) _mm512_storeu_ps(out + t * dim + c + r * 16, sum[t][r]);
      }
    }
  }

  static void pack_keys(const float* const* rows, int positions, std::int64_t columns, std::uint16_t* out) {
    pack_pairs(rows, positions, kPromptBlock, columns, reinterpret_cast<std::byte*>(out));
  }

  /// [kPairs][columns][2]; positions that are not there are zeros.
  static void pack_values(const float* const* rows, int positions, std::int64_t columns, std::uint16_t* out) {
    alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(kOrder);
    for (int pair = 0; pair < kPairs; ++pair) {
      const int j = 2 * pair;
      for (std::int64_t c = 0; c < columns; c += 16, out += 32) {
        const __m512 first = j < positions ? _mm512_loadu_ps(rows[j] + c) : _mm512_setzero_ps();
        const __m512 second = j + 1 < positions ? _mm512_loadu_ps(rows[j + 1] + c) : _mm512_setzero_ps();
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_storeu_si512(out, _mm512_permutexvar_epi16(order, both));
      }
    }
  }
};

}  // namespace

void fill_prompt_attention_avx512bf16(KernelTable& table) { fill_prompt_attention<Bf16Prompt>(table); }

}  // namespace shoal::cpu
