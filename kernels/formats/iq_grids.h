#pragma once
#include <cstdint>
#include <span>

/// The IQ formats store magnitudes by the number of a point in a fixed set. A point's coordinates are the bytes of an
/// integer, the first in the lowest byte.
namespace shoal::formats {

std::span<const std::uint64_t, 2048> iq1_grid();     // 8 of -1, 0, 1 (signed bytes)
std::span<const std::uint64_t, 256> iq2_xxs_grid();  // 8 of 8, 25, 43
std::span<const std::uint64_t, 512> iq2_xs_grid();
std::span<const std::uint64_t, 1024> iq2_s_grid();
std::span<const std::uint32_t, 256> iq3_xxs_grid();  // 4 of 4, 12, ... 52, 62
std::span<const std::uint32_t, 512> iq3_s_grid();    // 4 of 1, 3, ... 15

/// Eight signs in seven bits: the eighth makes the number of minus signs even. Bit i set: element i is negative.
constexpr std::uint8_t even_signs(unsigned seven_bits) {
  return static_cast<std::uint8_t>(seven_bits | static_cast<unsigned>(__builtin_parity(seven_bits)) << 7);
}

}  // namespace shoal::formats
