#pragma once
#include <cmath>

/// Fits of evenly spaced levels to values: the searches behind the formats' encoders. Each minimises
/// sum(weight * (value - stored)^2) over up to 256 values; null weights count all alike.
namespace shoal::formats {

/// The level in [low, high] whose multiple of `scale` is nearest to `value`. A scale of zero gives the level zero.
int nearest_level(float value, float scale, int low, int high);

/// The nearest whole number, or where that is beyond what any format's scales reach (values of 1e30 beside tiny ones,
/// no number at all), one that is just as much too large.
inline int nearest_whole(float value) {
  constexpr float most = 1024;
  return value < most ? (value > -most ? static_cast<int>(std::lround(value)) : -static_cast<int>(most))
                      : static_cast<int>(most);
}

/// The scale (of either sign) for values near scale * level, level in [low, high]. Zero where all values are.
float fit_scale(const float* values, const float* weights, int n, int low, int high);

/// The sum of weighted squares that `scale` leaves.
float scale_error(const float* values, const float* weights, int n, float scale, int low, int high);

struct ScaleAndOffset {
  float scale = 0, offset = 0;
};
/// scale >= 0 and offset for values near scale * level + offset, level in [0, high].
/// `offset_at_most_zero`: as the K formats store it.
ScaleAndOffset fit_scale_and_offset(const float* values, const float* weights, int n, int high,
                                    bool offset_at_most_zero = false);
float offset_error(const float* values, const float* weights, int n, ScaleAndOffset fit, int high);

}  // namespace shoal::formats
