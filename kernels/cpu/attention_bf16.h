#pragma once
#include "kernels/cpu/simd_avx512.h"
// Softmax and what walks a row need the operations above.
#include "kernels/cpu/vector_math.inl"
// (in this order)
#include "kernels/cpu/attention.inl"

/// What both forms of attention with BF16 dot products share: a block of positions whose weights are pairs of BF16.
namespace shoal::cpu {
namespace {

constexpr int kPairs = kBlock / 2;

inline __m512 add_pairs(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
/// 32 floats rounded.
inline __m512i to_bf16(const float* x) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}

/// soften() of a block's scores, and what comes of it as pairs; positions that are not seen weigh nothing.
inline float soften_to_pairs(float* scores, int positions, float scale, float& largest, float& sum,
                             std::int32_t* weights) {
  const float factor = soften(scores, positions, scale, largest, sum);
  if (positions < kBlock) {
    for (int j = (positions + kVec - 1) / kVec * kVec; j < kBlock; ++j) scores[j] = 0;
  }
  _mm512_storeu_si512(weights, to_bf16(scores));
  return factor;
}

}  // namespace
}  // namespace shoal::cpu
