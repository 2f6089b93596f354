#include "kernels/formats/ternary.h"

#include "kernels/formats/fit.h"

namespace shoal::formats {
namespace {

constexpr std::uint8_t kPowersOf3[5] = {1, 3, 9, 27, 81};

/// Where element i of a TQ1_0 block lies: the byte, and the digit in it.
struct Place {
  int byte, digit;
};
Place place_of(int i) {
  if (i < 160) return {i % 32, i / 32};
  if (i < 240) return {32 + (i - 160) % 16, (i - 160) / 16};
  return {48 + (i - 240) % 4, (i - 240) / 4};
}

}  // namespace

void decode(const BlockTQ1_0& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < kSuper; ++i) {
    const auto [byte, digit] = place_of(i);
    // Multiplying by a power of three moves the wanted digit behind the point; the whole part falls off the byte.
    const unsigned fraction = (static_cast<unsigned>(b.qs[byte]) * kPowersOf3[digit]) & 255u;
    out[i] = d * static_cast<float>(static_cast<int>(fraction * 3 >> 8) - 1);
  }
}

void decode(const BlockTQ2_0& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < kSuper; ++i) {
    out[i] = d * static_cast<float>(((b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3) - 1);
  }
}

void encode(const float* x, const float* w, BlockTQ1_0& block) {
  block.d = Half::of(fit_scale(x, w, kSuper, -1, 1));
  unsigned sums[52] = {};
  for (int i = 0; i < kSuper; ++i) {
    const auto [byte, digit] = place_of(i);
    sums[byte] += static_cast<unsigned>(nearest_level(x[i], block.d.value(), -1, 1) + 1) * kPowersOf3[4 - digit];
  }
  for (int j = 0; j < 52; ++j) block.qs[j] = static_cast<std::uint8_t>((sums[j] * 256 + 242) / 243);
}

void encode(const float* x, const float* w, BlockTQ2_0& block) {
  block.d = Half::of(fit_scale(x, w, kSuper, -1, 1));
  for (int i = 0; i < kSuper; ++i) {
    const int q = nearest_level(x[i], block.d.value(), -1, 1) + 1;
    block.qs[i / 128 * 32 + i % 32] |= static_cast<std::uint8_t>(q << (i % 128 / 32 * 2));
  }
}

}  // namespace shoal::formats
