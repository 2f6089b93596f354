// Encoders of the K formats. Each sub-block is first fitted by itself; the fits become integers times the super-block's
// scale; then integers and super-block scale are improved in turn, which wins back most of what rounding the sub-block
// scales lost.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/formats/fit.h"
#include "kernels/formats/k_quants.h"

namespace shoal::formats {
namespace {

constexpr int kRounds = 2;

const float* at(const float* weights, int i) { return weights ? weights + i : nullptr; }

/// Sub-blocks of `width` values near d * scale * level, level in [low, high], scale an integer in [scale_low,
/// scale_high].
template <int width, int low, int high, int scale_low, int scale_high>
struct ScaledBlocks {
  static constexpr int count = kSuper / width;
  Half d{};
  std::array<int, count> scale{};

  ScaledBlocks(const float* x, const float* w) {
    std::array<float, count> fits{};
    float largest = 0;
    for (int s = 0; s < count; ++s) {
      fits[static_cast<std::size_t>(s)] = fit_scale(x + s * width, at(w, s * width), width, low, high);
      if (std::abs(fits[static_cast<std::size_t>(s)]) > std::abs(largest)) largest = fits[static_cast<std::size_t>(s)];
    }
    if (largest == 0) return;
    // The end with the larger reach takes the largest scale.
    ScaledBlocks best(Half::of(largest / static_cast<float>(scale_low)));
    float best_error = best.settle(fits, x, w);
    ScaledBlocks trial = best;
    for (int round = 0; round < kRounds; ++round) {
      trial.d = trial.refit(x, w);
      const float error = trial.settle(fits, x, w);
      if (!(error < best_error)) break;
      best = trial;
      best_error = error;
    }
    *this = best;
  }

  float sub_scale(int s) const { return d.value() * static_cast<float>(scale[static_cast<std::size_t>(s)]); }
  int level(const float* x, int i) const { return nearest_level(x[i], sub_scale(i / width), low, high); }

 private:
  explicit ScaledBlocks(Half first) : d(first) {}

  /// Chooses each sub-block's integer under the present d; returns the error.
  float settle(const std::array<float, count>& fits, const float* x, const float* w) {
    const float unit = d.value();
    float total = 0;
    for (int s = 0; s < count; ++s) {
      const int centre = unit == 0 ? 0 : nearest_whole(fits[static_cast<std::size_t>(s)] / unit);
      float best = std::numeric_limits<float>::infinity();
      for (int candidate = centre - 1; candidate <= centre + 1; ++candidate) {
        const int bounded = std::clamp(candidate, scale_low, scale_high);
        const float error =
            scale_error(x + s * width, at(w, s * width), width, unit * static_cast<float>(bounded), low, high);
        if (error < best) {
          best = error;
          scale[static_cast<std::size_t>(s)] = bounded;
        }
      }
      total += best;
    }
    return total;
  }

  /// Least squares for d over the present levels.
  Half refit(const float* x, const float* w) const {
    double xl = 0, ll = 0;
    for (int i = 0; i < kSuper; ++i) {
      const double l = level(x, i) * scale[static_cast<std::size_t>(i / width)], weight = w ? w[i] : 1;
      xl += weight * static_cast<double>(x[i]) * l;
      ll += weight * l * l;
    }
    return ll > 0 ? Half::of(static_cast<float>(xl / ll)) : d;
  }
};

/// Sub-blocks of `width` values near d * scale * level - dmin * min, level in [0, high], scale and min in [0, most].
template <int width, int high, int most>
struct OffsetBlocks {
  static constexpr int count = kSuper / width;
  Half d{}, dmin{};
  std::array<int, count> scale{}, min{};

  OffsetBlocks(const float* x, const float* w) {
    std::array<ScaleAndOffset, count> fits{};
    float largest_scale = 0, largest_min = 0;
    for (int s = 0; s < count; ++s) {
      auto& fit = fits[static_cast<std::size_t>(s)];
      fit = fit_scale_and_offset(x + s * width, at(w, s * width), width, high, true);
      largest_scale = std::max(largest_scale, fit.scale);
      largest_min = std::max(largest_min, -fit.offset);
    }
    OffsetBlocks best(Half::of(largest_scale / most), Half::of(largest_min / most));
    float best_error = best.settle(fits, x, w);
    OffsetBlocks trial = best;
    for (int round = 0; round < kRounds; ++round) {
      trial.refit(x, w);
      const float error = trial.settle(fits, x, w);
      if (!(error < best_error)) break;
      best = trial;
      best_error = error;
    }
    *this = best;
  }

  ScaleAndOffset sub_block(int s) const {
    const auto i = static_cast<std::size_t>(s);
    return {d.value() * static_cast<float>(scale[i]), -dmin.value() * static_cast<float>(min[i])};
  }
  int level(const float* x, int i) const {
    const ScaleAndOffset fit = sub_block(i / width);
    return nearest_level(x[i] - fit.offset, fit.scale, 0, high);
  }

 private:
  OffsetBlocks(Half first, Half first_min) : d(first), dmin(first_min) {}

  float settle(const std::array<ScaleAndOffset, count>& fits, const float* x, const float* w) {
    const float unit = d.value(), unit_min = dmin.value();
    const auto nearest = [](float value, float of) { return of == 0 ? 0 : nearest_whole(value / of); };
    float total = 0;
    for (int s = 0; s < count; ++s) {
      const auto i = static_cast<std::size_t>(s);
      const int scale_centre = nearest(fits[i].scale, unit), min_centre = nearest(-fits[i].offset, unit_min);
      float best = std::numeric_limits<float>::infinity();
      for (int a = scale_centre - 1; a <= scale_centre + 1; ++a) {
        for (int b = min_centre - 1; b <= min_centre + 1; ++b) {
          const int sc = std::clamp(a, 0, most), m = std::clamp(b, 0, most);
          const ScaleAndOffset fit{unit * static_cast<float>(sc), -unit_min * static_cast<float>(m)};
          const float error = offset_error(x + s * width, at(w, s * width), width, fit, high);
          if (error < best) {
            best = error;
            scale[i] = sc;
            min[i] = m;
          }
        }
      }
      total += best;
    }
    return total;
  }

  /// Least squares for d and dmin together over the present levels.
  void refit(const float* x, const float* w) {
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (int i = 0; i < kSuper; ++i) {
      const auto s = static_cast<std::size_t>(i / width);
      const double a = level(x, i) * scale[s], b = -min[s], weight = w ? w[i] : 1, value = static_cast<double>(x[i]);
      aa += weight * a * a;
      ab += weight * a * b;
      bb += weight * b * b;
      xa += weight * value * a;
      xb += weight * value * b;
    }
    const double determinant = aa * bb - ab * ab;
    if (determinant > 1e-9 * aa * bb) {
      const double unit = (xa * bb - xb * ab) / determinant, unit_min = (xb * aa - xa * ab) / determinant;
      if (unit > 0 && unit_min >= 0) {
        d = Half::of(static_cast<float>(unit));
        dmin = Half::of(static_cast<float>(unit_min));
      }
    } else if (aa > 0 && bb == 0 && xa > 0) {
      d = Half::of(static_cast<float>(xa / aa));
    }
  }
};

std::uint8_t byte(int value) { return static_cast<std::uint8_t>(value); }

}  // namespace

void encode(const float* x, const float* w, BlockQ2_K& block) {
  const OffsetBlocks<16, 3, 15> fit(x, w);
  block.d = fit.d;
  block.dmin = fit.dmin;
  for (std::size_t s = 0; s < 16; ++s) block.scales[s] = byte(fit.scale[s] | fit.min[s] << 4);
  for (int i = 0; i < kSuper; ++i) block.qs[i / 128 * 32 + i % 32] |= byte(fit.level(x, i) << (i % 128 / 32 * 2));
}

void encode(const float* x, const float* w, BlockQ3_K& block) {
  const ScaledBlocks<16, -4, 3, -32, 31> fit(x, w);
  block.d = fit.d;
  std::uint8_t scales[16];
  for (std::size_t s = 0; s < 16; ++s) scales[s] = byte(fit.scale[s] + 32);
  pack_scales_q3(scales, block.scales);
  for (int i = 0; i < kSuper; ++i) {
    const int q = fit.level(x, i) + 4;
    block.qs[i / 128 * 32 + i % 32] |= byte((q & 3) << (i % 128 / 32 * 2));
    block.hmask[i % 32] |= byte(q >> 2 << (i / 32));
  }
}

/// The scales and minima of eight sub-blocks, as Q4_K and Q5_K keep them.
template <class Fit, class Block>
void put_scales(const Fit& fit, Block& block) {
  block.d = fit.d;
  block.dmin = fit.dmin;
  ScalesAndMins packed{};
  for (std::size_t s = 0; s < 8; ++s) packed.scale[s] = byte(fit.scale[s]), packed.min[s] = byte(fit.min[s]);
  pack_scales(packed, block.scales);
}

void encode(const float* x, const float* w, BlockQ4_K& block) {
  const OffsetBlocks<32, 15, 63> fit(x, w);
  put_scales(fit, block);
  for (int i = 0; i < kSuper; ++i) block.qs[i / 64 * 32 + i % 32] |= byte(fit.level(x, i) << (i / 32 % 2 * 4));
}

void encode(const float* x, const float* w, BlockQ5_K& block) {
  const OffsetBlocks<32, 31, 63> fit(x, w);
  put_scales(fit, block);
  for (int i = 0; i < kSuper; ++i) {
    const int q = fit.level(x, i);
    block.qs[i / 64 * 32 + i % 32] |= byte((q & 15) << (i / 32 % 2 * 4));
    block.qh[i % 32] |= byte(q >> 4 << (i / 32));
  }
}

void encode(const float* x, const float* w, BlockQ6_K& block) {
  const ScaledBlocks<16, -32, 31, -128, 127> fit(x, w);
  block.d = fit.d;
  for (std::size_t s = 0; s < 16; ++s) block.scales[s] = static_cast<std::int8_t>(fit.scale[s]);
  for (int i = 0; i < kSuper; ++i) {
    const int h = i / 128, k = i % 128 / 32, j = i % 32, q = fit.level(x, i) + 32;
    block.ql[64 * h + 32 * (k % 2) + j] |= byte((q & 15) << (k / 2 * 4));
    block.qh[32 * h + j] |= byte(q >> 4 << (2 * k));
  }
}

}  // namespace shoal::formats
