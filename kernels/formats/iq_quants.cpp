#include "kernels/formats/iq_quants.h"

#include "kernels/formats/iq_grids.h"

namespace shoal::formats {
namespace {

/// out[i] = scale * coordinate i * sign i, for the coordinates of one point.
template <class Point>
void put_point(Point point, float scale, unsigned signs, float* out) {
  for (unsigned i = 0; i < sizeof(Point); ++i) {
    const float magnitude = scale * static_cast<float>((point >> (8 * i)) & 255);
    out[i] = (signs >> i) & 1 ? -magnitude : magnitude;
  }
}

/// out[i] = scale * (coordinate i + delta), coordinates -1, 0 and 1.
void put_ternary(std::uint64_t point, float scale, float delta, float* out) {
  for (unsigned i = 0; i < 8; ++i) {
    out[i] = scale * (static_cast<float>(static_cast<std::int8_t>(point >> (8 * i))) + delta);
  }
}

std::uint32_t word(const std::uint8_t* bytes) {
  std::uint32_t w;
  std::memcpy(&w, bytes, sizeof w);
  return w;
}

unsigned half_byte(const std::uint8_t* bytes, int i) { return (bytes[i / 2] >> (4 * (i % 2))) & 15u; }
float iq2_scale(float d, unsigned s) { return d * (0.5f + static_cast<float>(s)) * 0.25f; }

constexpr float kDelta = 0.125f;

}  // namespace

void decode(const BlockIQ2_XXS& b, float* out) {
  const auto grid = iq2_xxs_grid();
  for (int g = 0; g < 8; ++g) {
    const std::uint16_t* q = b.qs + 4 * g;
    const std::uint32_t rest = q[2] | static_cast<std::uint32_t>(q[3]) << 16;
    const float scale = iq2_scale(b.d.value(), rest >> 28);
    for (int k = 0; k < 4; ++k) {
      const unsigned number = (q[k / 2] >> (8 * (k % 2))) & 255u;
      put_point(grid[number], scale, even_signs((rest >> (7 * k)) & 127u), out + 32 * g + 8 * k);
    }
  }
}

void decode(const BlockIQ2_XS& b, float* out) {
  const auto grid = iq2_xs_grid();
  for (int k = 0; k < 32; ++k) {
    const float scale = iq2_scale(b.d.value(), half_byte(b.scales, k / 2));
    put_point(grid[b.qs[k] & 511u], scale, even_signs(b.qs[k] >> 9), out + 8 * k);
  }
}

void decode(const BlockIQ2_S& b, float* out) {
  const auto grid = iq2_s_grid();
  for (int k = 0; k < 32; ++k) {
    const float scale = iq2_scale(b.d.value(), half_byte(b.scales, k / 2));
    const unsigned number = b.qs[k] | ((b.qh[k / 4] >> (2 * (k % 4))) & 3u) << 8;
    put_point(grid[number], scale, b.signs[k], out + 8 * k);
  }
}

void decode(const BlockIQ3_XXS& b, float* out) {
  const auto grid = iq3_xxs_grid();
  for (int k = 0; k < 64; ++k) {
    const std::uint32_t rest = word(b.signs_and_scales + k / 8 * 4);
    const float scale = b.d.value() * (0.5f + static_cast<float>(rest >> 28)) * 0.5f;
    const unsigned signs = even_signs((rest >> (7 * (k / 2 % 4))) & 127u);
    put_point(grid[b.qs[k]], scale, signs >> (4 * (k % 2)), out + 4 * k);
  }
}

void decode(const BlockIQ3_S& b, float* out) {
  const auto grid = iq3_s_grid();
  for (int k = 0; k < 64; ++k) {
    const float scale = b.d.value() * static_cast<float>(1 + 2 * half_byte(b.scales, k / 8));
    const unsigned number = b.qs[k] | ((b.qh[k / 8] >> (k % 8)) & 1u) << 8;
    put_point(grid[number], scale, b.signs[k / 2] >> (4 * (k % 2)), out + 4 * k);
  }
}

void decode(const BlockIQ1_S& b, float* out) {
  const auto grid = iq1_grid();
  for (int k = 0; k < 32; ++k) {
    const unsigned high = b.qh[k / 4];
    const float scale = b.d.value() * static_cast<float>(2 * ((high >> 12) & 7u) + 1);
    const unsigned number = b.qs[k] | ((high >> (3 * (k % 4))) & 7u) << 8;
    put_ternary(grid[number], scale, high & 0x8000u ? -kDelta : kDelta, out + 8 * k);
  }
}

void decode(const BlockIQ1_M& b, float* out) {
  const auto grid = iq1_grid();
  const float d = b.d().value();
  for (int k = 0; k < 32; ++k) {
    const unsigned s = (b.scales[k / 8] >> (3 * (k / 2 % 4))) & 7u, high = half_byte(b.qh, k);
    const unsigned number = b.qs[k] | (high & 7u) << 8;
    put_ternary(grid[number], d * static_cast<float>(2 * s + 1), high & 8u ? -kDelta : kDelta, out + 8 * k);
  }
}

}  // namespace shoal::formats
