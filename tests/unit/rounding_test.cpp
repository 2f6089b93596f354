// Conversions to narrow floats, against a search over all of their values.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/dtype.h"

namespace shoal {
namespace {

/// The code of 0 .. count - 1 whose value is nearest; of two equally near the even one.
template <class Decode>
unsigned nearest(float value, unsigned count, Decode decode) {
  unsigned best = 0;
  double least = HUGE_VAL;
  for (unsigned code = 0; code < count; ++code) {
    const float candidate = decode(code);
    if (std::isnan(candidate) || std::isinf(candidate) || std::signbit(candidate) != std::signbit(value)) continue;
    const double distance = std::abs(double{candidate} - double{value});
    if (distance < least || (distance == least && code % 2 == 0)) {
      least = distance;
      best = code;
    }
  }
  return best;
}

TEST(Rounding, F8E4M3IsNearestEven) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-12, 10);
  const auto check = [](float value) {
    const float kept = std::clamp(value, -448.0f, 448.0f);
    const auto want = nearest(kept, 256, [](unsigned c) { return f8_e4m3_to_f32(static_cast<std::uint8_t>(c)); });
    EXPECT_EQ(unsigned{f32_to_f8_e4m3(value)}, want) << value;
  };
  for (int i = 0; i < 20000; ++i) check(std::exp2(exponent(random)) * (i % 2 ? -1.0f : 1.0f));
  for (unsigned code = 0; code < 255; ++code) {
    if ((code & 0x7f) >= 0x7e) continue;
    const float low = f8_e4m3_to_f32(static_cast<std::uint8_t>(code));
    check(low);
    check((low + f8_e4m3_to_f32(static_cast<std::uint8_t>(code + 1))) / 2);
  }
  check(1e9f);
}

TEST(Rounding, F16IsNearestEven) {
  std::mt19937 random(2);
  std::uniform_real_distribution<float> exponent(-26, 15.9f);
  const auto decode = [](unsigned c) { return f16_to_f32(static_cast<std::uint16_t>(c)); };
  for (int i = 0; i < 300; ++i) {
    const float value = std::exp2(exponent(random)) * (i % 2 ? -1.0f : 1.0f);
    EXPECT_EQ(unsigned{f32_to_f16(value)}, nearest(value, 65536, decode)) << value;
  }
  for (unsigned code = 0; code < 0x7bff; ++code) {
    EXPECT_EQ(unsigned{f32_to_f16(decode(code))}, code);
    const unsigned even = code % 2 ? code + 1 : code;
    EXPECT_EQ(unsigned{f32_to_f16((decode(code) + decode(code + 1)) / 2)}, even) << code;
  }
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-1e30f), 0xfc00);
  EXPECT_EQ(f32_to_f16(NAN) & 0x7fff, 0x7e00);
}

}  // namespace
}  // namespace shoal
