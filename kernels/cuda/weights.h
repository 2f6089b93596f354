#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/scales.h"

namespace shoal::cuda {

/// The forms in which weights lie in device memory.
enum class WeightForm : std::uint8_t {
  f32,
  f16,
  bf16,
  f8,      // E4M3, with block scales or without
  packed,  // codes with scales: the panels of kernels/packed_format.h, as they are, and their PointSet::table behind
};

/// How the panels of a packed matrix are read; packed_format.h and packed_codes.h have the layout and the meaning.
struct PackedLayout {
  int bits = 0, group = 32;
  Scales scales = Scales::half;
  Coding coding = Coding::planes;
  int point_columns = 0, extra_bits = 0, deltas_at = 0;
  const std::uint8_t* points = nullptr;
  bool minima = false, minima_of_scale = false, zeros = false, has_table = false;
  int record = 32;  // columns
  int record_bytes = 0, zero_at = 0, factor_at = 0, head_bytes = 0, step_bytes = 0, scale_bytes = 0;
  float offset = 0, unit = 1, minimum_unit = 1;
  alignas(4) std::uint8_t table[16] = {};
  alignas(4) std::uint8_t minimum_of[16] = {};
  alignas(4) std::int8_t scale_of[16] = {};
  bool operator==(const PackedLayout&) const = default;
  /// Whether one kernel reads both, given the points of each.
  bool is_read_like(PackedLayout other) const {
    other.points = points;
    return *this == other;
  }
};

/// F8 matrices lie in tiles of 128 rows by 128 columns, 16 KB in one piece and in the very order in which the tensor
/// cores of sm_90 read shared memory ("128-byte swizzle": 16-byte chunk c of row r lies at chunk c ^ (r % 8)), so that
/// one bulk copy brings a tile. Chunks of 16 columns stay together, which is all that the other kernels need.
constexpr int kF8Tile = 128;
constexpr std::int64_t kF8TileBytes = kF8Tile * kF8Tile;
/// Where element [row][col] lies; `col_tiles` tiles lie side by side.
constexpr std::int64_t f8_offset(std::int64_t row, std::int64_t col, std::int64_t col_tiles) {
  const std::int64_t r = row % kF8Tile, chunk = col % kF8Tile / 16;
  return (row / kF8Tile * col_tiles + col / kF8Tile) * kF8TileBytes + r * kF8Tile + ((chunk ^ (r % 8)) * 16) + col % 16;
}

/// A weight matrix [rows, cols] in device memory, as kernels see it.
/// F32, F16, BF16: row-major, rows `stride` elements apart (a multiple of 16, so every row is aligned to 16 bytes). F8:
/// in tiles, `stride` / 128 side by side; element [r][c] is worth value * scales[r / block_rows][c / block_cols]. What
/// lies behind the last column and row is zero.
struct Weights {
  const std::byte* data = nullptr;
  const float* scales = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;
  int block_rows = 1, block_cols = 1, scale_cols = 0;
  WeightForm form = WeightForm::f32;
  PackedLayout packed;
  const std::int32_t* order = nullptr;  // packed: column c meets activation order[c] (GPTQ's act-order); null: c
  bool operator==(const Weights&) const = default;
};

}  // namespace shoal::cuda
