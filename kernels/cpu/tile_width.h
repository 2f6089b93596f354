#pragma once
#include <cstdint>

namespace shoal::cpu {
namespace {

/// Width of the next of tiles of about the same width, none wider than `most`: 17 tokens in tiles of 8 are 6, 6 and 5,
/// not 8, 8 and 1.
inline int even_tile_width(std::int64_t remaining, int most) {
  const std::int64_t tiles = (remaining + most - 1) / most;
  return static_cast<int>((remaining + tiles - 1) / tiles);
}

}  // namespace
}  // namespace shoal::cpu
