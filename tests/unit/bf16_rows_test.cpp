#include "collectives/bf16_rows.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace shoal {
namespace {

std::uint16_t packed(float value) {
  std::uint16_t bits = 0;
  pack_bf16({&value, 1}, &bits);
  return bits;
}

TEST(Bf16Rows, EveryValueComesBack) {
  std::vector<std::uint16_t> all(1 << 16), again(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> values(all.size());
  unpack_bf16(all, values.data());
  pack_bf16(values, again.data());
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (std::isnan(values[i])) {
      EXPECT_EQ(again[i], all[i] | 0x40) << i;  // quiet
    } else {
      EXPECT_EQ(again[i], all[i]);
    }
  }
}

TEST(Bf16Rows, RoundsToNearestTiesToEven) {
  const auto with_bits = [](std::uint32_t bits) { return std::bit_cast<float>(bits); };
  EXPECT_EQ(packed(with_bits(0x3f807fff)), 0x3f80);
  EXPECT_EQ(packed(with_bits(0x3f808000)), 0x3f80);
  EXPECT_EQ(packed(with_bits(0x3f808001)), 0x3f81);
  EXPECT_EQ(packed(with_bits(0x3f818000)), 0x3f82);
  EXPECT_EQ(packed(with_bits(0xbf818000)), 0xbf82);
  EXPECT_EQ(packed(std::numeric_limits<float>::max()), 0x7f80);  // rounds up to infinity
  EXPECT_EQ(packed(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_TRUE(packed(with_bits(0x7fffffff)) == 0x7fff);
  EXPECT_TRUE(packed(with_bits(0x7f800001)) == 0x7fc0);  // would become infinity if cut off
}

TEST(Bf16Rows, Adds) {
  const std::vector<std::uint16_t> one_and_half = {packed(1.0f), packed(1.5f), packed(-2.0f)};
  std::vector<float> sum = {0.25f, 0, 2};
  add_bf16(one_and_half, sum.data());
  EXPECT_EQ(sum, std::vector<float>({1.25f, 1.5f, 0.0f}));
}

}  // namespace
}  // namespace shoal
