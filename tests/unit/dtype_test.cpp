#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace shoal {
namespace {

/// A small float's value from its definition: `exponent_bits` and `mantissa_bits`, bias 2^(exponent_bits - 1) - 1.
double by_definition(unsigned code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const unsigned mantissa = code & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>((code >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double sign = (code >> (exponent_bits + mantissa_bits)) & 1u ? -1.0 : 1.0;
  const double fraction = std::ldexp(double(mantissa), -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias) : sign * std::ldexp(1.0 + fraction, exponent - bias);
}

TEST(Dtype, EveryF8Code) {
  for (unsigned code = 0; code < 256; ++code) {
    const float f = f8_e4m3_to_f32(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(f));
      continue;
    }
    EXPECT_EQ(f, by_definition(code, 4, 3)) << code;
    EXPECT_EQ(std::signbit(f), code >= 128) << code;
  }
  EXPECT_EQ(f8_e4m3_to_f32(0x7e), 448.0f);
  EXPECT_EQ(f8_e4m3_to_f32(0x01), 0x1p-9f);
}

TEST(Dtype, EveryF16Code) {
  for (unsigned code = 0; code < 65536; ++code) {
    const float f = f16_to_f32(static_cast<std::uint16_t>(code));
    EXPECT_EQ(std::signbit(f), code >= 0x8000);
    if ((code & 0x7c00) == 0x7c00) {
      EXPECT_TRUE((code & 0x3ff) ? std::isnan(f) : std::isinf(f)) << code;
    } else {
      EXPECT_EQ(f, by_definition(code, 5, 10)) << code;
    }
  }
}

TEST(Dtype, Bf16RoundsToNearestEven) {
  const auto bits = [](std::uint32_t u) { return f32_to_bf16(std::bit_cast<float>(u)); };
  EXPECT_EQ(bits(0x3f800000), 0x3f80);
  EXPECT_EQ(bits(0x3f807fff), 0x3f80);  // just below half
  EXPECT_EQ(bits(0x3f808000), 0x3f80);  // half, even below
  EXPECT_EQ(bits(0x3f808001), 0x3f81);  // just above half
  EXPECT_EQ(bits(0x3f818000), 0x3f82);  // half, even above
  EXPECT_EQ(bits(0xbf818000), 0xbf82);
  EXPECT_EQ(bits(0x3fffffff), 0x4000);  // carries into the exponent
  EXPECT_EQ(bits(0x7f7fffff), 0x7f80);  // rounds to infinity
  EXPECT_EQ(bits(0x7f800000), 0x7f80);
  EXPECT_EQ(bits(0xff800000), 0xff80);
  EXPECT_EQ(bits(0x00008000), 0x0000);  // subnormal half, to even
  EXPECT_EQ(bits(0x00018000), 0x0002);
  EXPECT_EQ(bits(0x80000000), 0x8000);
  for (const std::uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0x7fc00000u}) {
    EXPECT_TRUE(std::isnan(bf16_to_f32(bits(nan)))) << nan;
  }
  for (unsigned code = 0; code < 65536; ++code) {
    const auto half = static_cast<std::uint16_t>(code);
    const float f = bf16_to_f32(half);
    if (std::isnan(f)) continue;
    EXPECT_EQ(f32_to_bf16(f), half);
  }
}

TEST(Dtype, ConversionsAreConstantExpressions) {
  static_assert(bf16_to_f32(0x4049) == 3.140625f);
  static_assert(f32_to_bf16(1.0f) == 0x3f80);
  static_assert(f16_to_f32(0x3c00) == 1.0f);
  static_assert(f8_e4m3_to_f32(0x38) == 1.0f);
  static_assert(size_of(DType::f8_e4m3) == 1 && size_of(DType::f16) == 2);
  EXPECT_EQ(name_of(DType::f8_e4m3), "F8_E4M3");
}

}  // namespace
}  // namespace shoal
