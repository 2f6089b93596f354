#pragma once
#include <cstdint>

namespace shoal::cuda {

/// Keys and values of MLA's heads in BF16, made of latents: of each position and head the key (first what comes of the
/// latent, then the rotated part, which all heads share), then the value.
struct ExpandedKv {
  static constexpr int kTile = 128, kPanel = 64;  // positions, columns

  std::uint16_t* data = nullptr;
  int heads = 0;
  int nope = 0, rope = 0, value = 0;  // columns of a head
  /// false: rows [positions, heads * width()], as in a cache. true: as the copy engine of sm_90 brings them to wgmma,
  /// [tiles of 128 positions, heads, panels of 64 columns, 128 positions, 64 columns], swizzled as F8 weights are
  /// (weights.h); zeros behind the last position.
  bool tiled = false;

  constexpr int width() const { return nope + rope + value; }
  /// Where a chunk of eight columns begins.
  constexpr std::int64_t place(int position, int head, int column) const {
    if (!tiled) return (std::int64_t{position} * heads + head) * width() + column;
    const int row = position % kTile;
    const std::int64_t of_head = std::int64_t{position / kTile} * heads + head;
    return ((of_head * (width() / kPanel) + column / kPanel) * kTile + row) * kPanel +
           ((column % kPanel / 8) ^ (row % 8)) * 8;
  }
  /// That `data` has room for.
  static constexpr std::int64_t elements(std::int64_t positions, std::int64_t width_of_all_heads) {
    return (positions + kTile - 1) / kTile * kTile * width_of_all_heads;
  }
};

}  // namespace shoal::cuda
