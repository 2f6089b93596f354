// Included after the simd header of an instruction set.
#include "kernels/cpu/kernel_table.h"

namespace shoal::cpu {
namespace {

/// e^x within two units in the last place; overflows to infinity, underflows through the subnormals, NaN stays NaN.
/// x = n ln 2 + r, |r| <= ln 2 / 2, and e^r by its Taylor series to r^7 (the rest is below 6e-9 of the result). ln 2 is
/// split in two so that n times its upper part is exact (Cody and Waite).
inline Vec vec_exp(Vec x) {
  const Vec clamped = vec_clamp(x, -110.0f, 100.0f);
  const Vec n = vec_round(clamped * vec_set(1.44269504088896341f));
  Vec r = vec_fma(n, vec_set(-0.693359375f), clamped);
  r = vec_fma(n, vec_set(2.12194440e-4f), r);
  Vec p = vec_set(1.0f / 5040.0f);
  constexpr float kTaylor[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f};
#pragma GCC unroll 7
  for (int i = 0; i < 7; ++i) p = vec_fma(p, r, vec_set(kTaylor[i]));
  return vec_scale_by_power_of_two(p, n);
}

/// Calls body(i, n) for the row's whole registers (n = kVec) and then for what is left.
template <class Whole, class Rest>
inline void for_each_vec(std::int64_t n, const Whole& whole, const Rest& rest) {
  std::int64_t i = 0;
  for (; i + kVec <= n; i += kVec) whole(i);
  if (i < n) rest(i, n - i);
}

}  // namespace
}  // namespace shoal::cpu
