#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/code_layout.h"
#include "kernels/scales.h"

/// How the codes of a record (packed_format.h) lie. A step is 32 columns of 16 rows, 512 codes; a quad four columns.
///
/// Coding::planes: for each step planes of 4, 2 and 1 bits (or of 8), each [quads][16 rows][4 columns]. A plane of b
/// bits has 8 / b quads in a byte: byte i of its part j holds those of quads j, j + b, j + 2 b, ...
///
// clang-format off
/// Coding::points: for each step
///     numbers [quads, or pairs of quads, / 4][16 rows][4]     bytes: the lower bits of numbers of points of 4 or 8 columns
///     further bits [as many][extra_bits][64 bits]             of the same numbers, in the same order
///     signs [16 rows]                                         32 bits: column by column
/// The code of a column is the number of its coordinate (two bits of points of 8 columns, three of points of 4), and the
/// sign in the next bit.
///
/// Coding::trits: for each half of the record, 128 columns,
///     [6][16 rows][4]             bytes of five trits: byte k of a row has those of columns 4 k to 4 k + 3 and of 96 + k
/// then [16 rows][2 halves][2]     bytes of four codes of two bits: columns 120 to 127
/// then with deltas [32][16 rows]  a bit for 8 columns of a row
// clang-format on
namespace shoal {

struct PackedFormat;

/// A fixed set of points, or of five trits, by number.
struct PointSet {
  int columns = 8;     // of a point: 8, 4, or 5 for trits
  int extra_bits = 0;  // of a number beyond eight
  /// [2][256 << extra_bits]. Two bits for each of the first four columns; then for each of the last four, or (points of
  /// 4 columns) the third bit of each, or (trits) the fifth trit.
  alignas(64) std::array<std::uint8_t, 2048> table{};
  /// [256 << extra_bits][columns / 4]: the codes of four columns, a byte each.
  alignas(64) std::array<std::uint32_t, 2048> codes{};
  int size() const { return 256 << extra_bits; }
  /// Registers of 64 numbers in a step.
  int registers() const { return columns == 4 ? 2 : 1; }
};

constexpr int plane_bytes(int bits) { return bits * 64; }                                                 // of a step
constexpr int kTritBytes = 2 * kHalfTritBytes + 64, kDeltaBytes = 64;                                     // of a record
inline int point_bytes(const PointSet& set) { return set.registers() * (64 + 8 * set.extra_bits) + 64; }  // of a step

CodeLayout code_layout(const PackedFormat& format);

// These write into a record that is zero.

/// The codes [steps][8 quads][16 rows][4].
void put_planes(const PackedFormat& format, const std::uint8_t* codes, std::byte* record);
/// A row's numbers of points [256 / columns of a point], and signs [8 steps].
void put_points(const PackedFormat& format, int row, const std::uint16_t* numbers, const std::uint32_t* signs,
                std::byte* record);
/// A row's codes [256].
void put_trits(const PackedFormat& format, int row, const std::uint8_t* codes, std::byte* record);

/// Fills `codes` from the table.
void spread_table(PointSet& set);

/// The five trits of a byte as PointSet::table has them.
const PointSet& trit_set();

}  // namespace shoal
