#include "kernels/formats/fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace shoal::formats {
namespace {

/// Rounds to the nearest integer by pushing the fraction out of the mantissa: plain additions, which the compiler
/// vectorises. For |x| < 2^22.
float round_small(float x) {
  constexpr float shift = 0x1.8p23f;
  return x + shift - shift;
}

float level_of(float value, float inverse, float low, float high) {
  return round_small(std::min(std::max(value * inverse, low), high));
}

float inverse_of(float scale) { return scale == 0 ? 0.0f : 1.0f / scale; }

const float* or_ones(const float* weights) {
  static const auto ones = [] {
    std::array<float, 256> a{};
    a.fill(1);
    return a;
  }();
  return weights ? weights : ones.data();
}

/// Least squares for one scale over the levels that `scale` gives.
float refined_scale(const float* x, const float* w, int n, float scale, float low, float high) {
  const float inverse = inverse_of(scale);
  float xl = 0, ll = 0;
  for (int i = 0; i < n; ++i) {
    const float level = level_of(x[i], inverse, low, high);
    xl += w[i] * x[i] * level;
    ll += w[i] * level * level;
  }
  return ll > 0 ? xl / ll : scale;
}

ScaleAndOffset refined(const float* x, const float* w, int n, ScaleAndOffset fit, float high, bool at_most_zero) {
  const float inverse = inverse_of(fit.scale);
  float sum_w = 0, sum_x = 0, sum_l = 0, sum_ll = 0, sum_xl = 0;
  for (int i = 0; i < n; ++i) {
    const float level = level_of(x[i] - fit.offset, inverse, 0, high);
    sum_w += w[i];
    sum_x += w[i] * x[i];
    sum_l += w[i] * level;
    sum_ll += w[i] * level * level;
    sum_xl += w[i] * x[i] * level;
  }
  const float determinant = sum_w * sum_ll - sum_l * sum_l;
  if (!(determinant > 0)) return fit;
  ScaleAndOffset better{(sum_w * sum_xl - sum_x * sum_l) / determinant,
                        (sum_ll * sum_x - sum_l * sum_xl) / determinant};
  if (at_most_zero && better.offset > 0) better = {sum_ll > 0 ? sum_xl / sum_ll : 0, 0};
  return better.scale > 0 ? better : fit;
}

/// Improves a start until that ends, and keeps it where it is the best so far.
template <class Fit, class Refine, class Error>
void descend(Fit start, Fit& best, float& best_error, Refine refine, Error error_of) {
  constexpr int most_rounds = 4;
  Fit fit = refine(start);
  float error = error_of(fit);
  for (int round = 1; round < most_rounds; ++round) {
    // A start this much behind will not catch up.
    if (error > 1.5f * best_error) return;
    const Fit next = refine(fit);
    const float next_error = error_of(next);
    if (!(next_error < error)) break;
    fit = next;
    error = next_error;
  }
  if (error < best_error) {
    best = fit;
    best_error = error;
  }
}

}  // namespace

int nearest_level(float value, float scale, int low, int high) {
  return static_cast<int>(level_of(value, inverse_of(scale), static_cast<float>(low), static_cast<float>(high)));
}

float scale_error(const float* x, const float* weights, int n, float scale, int low, int high) {
  const float* w = or_ones(weights);
  const float inverse = inverse_of(scale);
  float error = 0;
  for (int i = 0; i < n; ++i) {
    const float rest = x[i] - scale * level_of(x[i], inverse, static_cast<float>(low), static_cast<float>(high));
    error += w[i] * rest * rest;
  }
  return error;
}

float fit_scale(const float* x, const float* weights, int n, int low, int high) {
  const float* w = or_ones(weights);
  float largest = 0;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > std::abs(largest)) largest = x[i];
  }
  if (largest == 0) return 0;
  float best = 0, best_error = std::numeric_limits<float>::infinity();
  const auto attempt = [&](float scale) {
    descend(
        scale, best, best_error,
        [&](float s) { return refined_scale(x, w, n, s, static_cast<float>(low), static_cast<float>(high)); },
        [&](float s) { return scale_error(x, w, n, s, low, high); });
  };
  // The largest value falls on or near an end of the levels. Few levels leave most of the choice; with many, it is
  // nearly settled.
  const int steps = high - low < 64 ? 9 : 2;
  for (int k = -steps; k <= steps; ++k) {
    attempt(largest / (static_cast<float>(low) + 0.1f * static_cast<float>(k)));
    if (-low != high) attempt(largest / (static_cast<float>(high) + 0.1f * static_cast<float>(k)));
  }
  return best;
}

float offset_error(const float* x, const float* weights, int n, ScaleAndOffset fit, int high) {
  const float* w = or_ones(weights);
  const float inverse = inverse_of(fit.scale);
  float error = 0;
  for (int i = 0; i < n; ++i) {
    const float level = level_of(x[i] - fit.offset, inverse, 0, static_cast<float>(high));
    const float rest = x[i] - (fit.scale * level + fit.offset);
    error += w[i] * rest * rest;
  }
  return error;
}

ScaleAndOffset fit_scale_and_offset(const float* x, const float* weights, int n, int high, bool at_most_zero) {
  const float* w = or_ones(weights);
  const auto [low_at, high_at] = std::minmax_element(x, x + n);
  const float least = at_most_zero ? std::min(*low_at, 0.0f) : *low_at;
  const float range = *high_at - least;
  if (!(range > 0)) return {0, least};
  ScaleAndOffset best{0, least};
  float best_error = std::numeric_limits<float>::infinity();
  const auto attempt = [&](ScaleAndOffset start) {
    descend(
        start, best, best_error,
        [&](ScaleAndOffset f) { return refined(x, w, n, f, static_cast<float>(high), at_most_zero); },
        [&](ScaleAndOffset f) { return offset_error(x, w, n, f, high); });
  };
  for (int k = -10; k <= 10; ++k) {
    const float spread = static_cast<float>(high) + 0.1f * static_cast<float>(k);
    if (spread > 0.5f) attempt({range / spread, least});
  }
  return best;
}

}  // namespace shoal::formats
