#pragma once
#include <cstdint>

namespace shoal::cpu {

struct TileShape {
  std::uint8_t rows;        // at most 16
  std::uint16_t row_bytes;  // at most 64
};

/// The operand of LDTILECFG (Intel SDM, volume 1, chapter 18).
struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace shoal::cpu
