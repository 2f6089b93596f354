#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace shoal::cpu {
namespace {

/// Sums stay in registers only where what adds to them is inlined whatever its size.
#define SHOAL_INLINE __attribute__((always_inline)) inline

/// Width of the next of tiles of about the same width, none wider than `most`: 17 tokens in tiles of 8 are 6, 6 and 5,
/// not 8, 8 and 1.
inline int even_tile_width(std::int64_t remaining, int most) {
  const std::int64_t tiles = (remaining + most - 1) / most;
  return static_cast<int>((remaining + tiles - 1) / tiles);
}

/// Outputs that blocks of columns will be added to, of so many panels.
inline void clear_outputs(const PackedTile* tiles, int n_tiles, std::int64_t panels) {
  for (int i = 0; i < n_tiles; ++i) {
    std::memset(tiles[i].out, 0, static_cast<std::size_t>(panels * tiles[i].width * 16) * sizeof(float));
  }
}

}  // namespace
}  // namespace shoal::cpu
