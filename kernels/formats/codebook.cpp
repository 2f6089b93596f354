#include "kernels/formats/codebook.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/formats/fit.h"

namespace shoal::formats {
namespace {

using Levels = const std::int8_t[16];

void put_levels(const std::uint8_t qs[16], Levels& levels, float scale, float* out) {
  for (int j = 0; j < 16; ++j) {
    out[j] = scale * static_cast<float>(levels[qs[j] & 15]);
    out[j + 16] = scale * static_cast<float>(levels[qs[j] >> 4]);
  }
}

/// 2^(e - 128), the half of what E8M0 says, since the levels are doubled.
float e8m0_half(std::uint8_t e) {
  return std::bit_cast<float>(e < 2 ? std::uint32_t{0x00200000} << e : (std::uint32_t{e} - 1) << 23);
}

/// Numbers of the nearest levels, and what they leave and what a better scale would be.
struct Assignment {
  std::uint8_t q[32] = {};
  float error = 0, better_scale = 0;
};

Assignment assign(const float* x, const float* w, Levels& levels, float scale) {
  Assignment a;
  const float inverse = scale == 0 ? 0 : 1 / scale;
  float xl = 0, ll = 0;
  for (int i = 0; i < 32; ++i) {
    const float wanted = x[i] * inverse;
    float best = std::numeric_limits<float>::infinity();
    for (std::uint8_t k = 0; k < 16; ++k) {
      const float distance = std::abs(wanted - static_cast<float>(levels[k]));
      if (distance < best) {
        best = distance;
        a.q[i] = k;
      }
    }
    const float level = static_cast<float>(levels[a.q[i]]), weight = w ? w[i] : 1.0f, rest = x[i] - scale * level;
    a.error += weight * rest * rest;
    xl += weight * x[i] * level;
    ll += weight * level * level;
  }
  a.better_scale = ll > 0 ? xl / ll : scale;
  return a;
}

float largest_of(const float* x, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > std::abs(largest)) largest = x[i];
  }
  return largest;
}

/// The scale that leaves the least error over the IQ4 levels.
float fit_iq4(const float* x, const float* w) {
  const float largest = largest_of(x, 32);
  if (largest == 0) return 0;
  float best = 0, best_error = std::numeric_limits<float>::infinity();
  for (const int end : {kIq4Levels[0], kIq4Levels[15]}) {
    for (int k = -7; k <= 7; ++k) {
      float scale = largest / (static_cast<float>(end) * (1 + 0.02f * static_cast<float>(k)));
      for (int round = 0; round < 3; ++round) {
        const Assignment a = assign(x, w, kIq4Levels, scale);
        if (a.error < best_error) {
          best_error = a.error;
          best = scale;
        }
        if (a.error > 1.5f * best_error || a.better_scale == scale) break;
        scale = a.better_scale;
      }
    }
  }
  return best;
}

void pack(const std::uint8_t q[32], std::uint8_t qs[16]) {
  for (int j = 0; j < 16; ++j) qs[j] = static_cast<std::uint8_t>(q[j] | q[j + 16] << 4);
}

}  // namespace

void decode(const BlockIQ4_NL& b, float* out) { put_levels(b.qs, kIq4Levels, b.d.value(), out); }

void decode(const BlockIQ4_XS& b, float* out) {
  for (int s = 0; s < 8; ++s) {
    const int low = (b.scales_low[s / 2] >> (4 * (s % 2))) & 15, high = (b.scales_high >> (2 * s)) & 3;
    put_levels(b.qs + 16 * s, kIq4Levels, b.d.value() * static_cast<float>((low | high << 4) - 32), out + 32 * s);
  }
}

void decode(const BlockMXFP4& b, float* out) { put_levels(b.qs, kE2m1Levels, e8m0_half(b.e), out); }

void encode(const float* x, const float* w, BlockIQ4_NL& block) {
  block.d = Half::of(fit_iq4(x, w));
  pack(assign(x, w, kIq4Levels, block.d.value()).q, block.qs);
}

void encode(const float* x, const float* w, BlockIQ4_XS& block) {
  std::array<float, 8> fits{};
  for (int s = 0; s < 8; ++s) fits[static_cast<std::size_t>(s)] = fit_iq4(x + 32 * s, w ? w + 32 * s : nullptr);
  const float largest = largest_of(fits.data(), 8);
  float best_error = std::numeric_limits<float>::infinity();
  // Which integer the largest scale becomes decides how well the others are met.
  for (int end = -32; end <= -26; ++end) {
    BlockIQ4_XS trial{};
    trial.d = Half::of(largest / static_cast<float>(end));
    const float d = trial.d.value();
    float error = 0;
    for (int s = 0; s < 8; ++s) {
      const int centre = d == 0 ? 0 : nearest_whole(fits[static_cast<std::size_t>(s)] / d);
      Assignment best;
      best.error = std::numeric_limits<float>::infinity();
      int scale = 0;
      for (int c = centre - 1; c <= centre + 1; ++c) {
        const int bounded = std::clamp(c, -32, 31);
        const Assignment a = assign(x + 32 * s, w ? w + 32 * s : nullptr, kIq4Levels, d * static_cast<float>(bounded));
        if (a.error < best.error) best = a, scale = bounded;
      }
      error += best.error;
      pack(best.q, trial.qs + 16 * s);
      const unsigned stored = static_cast<unsigned>(scale + 32);
      trial.scales_low[s / 2] |= static_cast<std::uint8_t>((stored & 15) << (4 * (s % 2)));
      trial.scales_high |= static_cast<std::uint16_t>(stored >> 4 << (2 * s));
    }
    if (error < best_error) {
      best_error = error;
      block = trial;
    }
  }
}

void encode(const float* x, const float* w, BlockMXFP4& block) {
  const float largest = std::abs(largest_of(x, 32));
  if (largest == 0) return;
  // The largest of a block is between 4 and 8 units (of up to 6); one exponent more or less may still be better.
  const int centre = std::ilogb(largest) - 2 + 127;
  float best_error = std::numeric_limits<float>::infinity();
  for (int e = centre - 1; e <= centre + 1; ++e) {
    const auto bounded = static_cast<std::uint8_t>(std::clamp(e, 0, 254));
    const Assignment a = assign(x, w, kE2m1Levels, e8m0_half(bounded));
    if (a.error < best_error) {
      best_error = a.error;
      block.e = bounded;
      pack(a.q, block.qs);
    }
  }
}

}  // namespace shoal::formats
