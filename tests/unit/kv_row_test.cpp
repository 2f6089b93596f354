#include "kernels/kv_row.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/dtype.h"

namespace shoal {
namespace {

TEST(KvRow, SizesAreWhatTheMemoryPlanSays) {
  // R1's latent and rotated key: 512 + 64.
  EXPECT_EQ(kv_row_bytes(KvType::f32, 576), 2304);
  EXPECT_EQ(kv_row_bytes(KvType::bf16, 576), 1152);
  EXPECT_EQ(kv_row_bytes(KvType::fp8, 576), 612);
  EXPECT_EQ(kv_row_bytes(KvType::int8, 576), 612);
  EXPECT_EQ(kv_row_bytes(KvType::int8, 33), 68);
}

/// Every value comes back within half a step of its type, whatever the magnitudes around it in other groups.
TEST(KvRow, ErrorsStayWithinHalfAStep) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const std::int64_t width = 100;
  for (const KvType type : {KvType::f32, KvType::bf16, KvType::fp8, KvType::int8}) {
    std::vector<std::byte> row(static_cast<std::size_t>(kv_row_bytes(type, width)));
    for (int trial = 0; trial < 500; ++trial) {
      std::vector<float> x(static_cast<std::size_t>(width));
      for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = normal(random) * std::pow(10.0f, static_cast<float>((i / 32 + trial) % 9) - 4);
      encode_kv(type, x.data(), 32, 0, width, row.data());
      encode_kv(type, x.data() + 32, width - 32, 32, width, row.data());
      for (std::int64_t i = 0; i < width; ++i) {
        float largest = 0;
        for (std::int64_t j = i / 32 * 32; j < std::min(width, i / 32 * 32 + 32); ++j)
          largest = std::max(largest, std::abs(x[static_cast<std::size_t>(j)]));
        const float value = x[static_cast<std::size_t>(i)],
                    error = std::abs(decode_kv(type, row.data(), i, width) - value);
        // A scale is rounded up to BF16, by up to 1/128 of it.
        const float step = type == KvType::f32    ? 0.0f
                           : type == KvType::bf16 ? std::abs(value) / 128
                           : type == KvType::int8 ? largest / 127 * 1.008f
                                                  : std::max(std::abs(value) / 8, largest / 448 / 512 * 1.008f);
        EXPECT_LE(error, step / 2 * 1.0001f) << name_of(type) << " of " << value << " beside " << largest;
      }
    }
  }
}

/// All 256 codes of E4M3 (but its two NaN) are what a group with that very value and 448 comes back as.
TEST(KvRow, EveryE4m3ValueIsExact) {
  for (int code = 0; code < 256; ++code) {
    const float value = f8_e4m3_to_f32(static_cast<std::uint8_t>(code));
    if (std::isnan(value)) continue;
    const float x[2] = {value, 448.0f};
    std::byte row[34];
    encode_kv(KvType::fp8, x, 2, 0, 2, row);
    EXPECT_EQ(decode_kv(KvType::fp8, row, 0, 2), value);
    EXPECT_EQ(decode_kv(KvType::fp8, row, 1, 2), 448.0f);
  }
}

TEST(KvRow, ZerosStayAndWhatIsNoNumberIsSeen) {
  for (const KvType type : {KvType::fp8, KvType::int8}) {
    std::byte row[68];
    std::vector<float> x(64);
    encode_kv(type, x.data(), 64, 0, 64, row);
    EXPECT_EQ(decode_kv(type, row, 5, 64), 0.0f);
    x[3] = INFINITY;
    x[40] = 1;
    encode_kv(type, x.data(), 64, 0, 64, row);
    EXPECT_TRUE(std::isnan(decode_kv(type, row, 3, 64)));
    EXPECT_NEAR(decode_kv(type, row, 40, 64), 1.0f, 0.01f) << "the next group is whole";
  }
}

}  // namespace
}  // namespace shoal
