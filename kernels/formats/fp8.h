#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace shoal::formats {

/// To E4M3 (see f8_e4m3_to_f32): nearest, ties to even; beyond 448 to 448. For finite values.
inline std::uint8_t f32_to_f8_e4m3(float f) {
  const float magnitude = std::min(std::abs(f), 448.0f);
  const int sign = std::signbit(f) ? 0x80 : 0;
  const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
  // Eighths of the power of two: 8 to 16 of them, fewer for subnormals; 16 carries into the exponent.
  const int eighths = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  return static_cast<std::uint8_t>(sign | (((exponent + 7) << 3) + eighths - 8));
}

}  // namespace shoal::formats
