#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "kernels/formats/format.h"
#include "kernels/packed_codes.h"
#include "kernels/scales.h"

namespace shoal {

/// One row's columns of a record, taken out of the stored block: what a weight is worth is
///     scale * (value(code) - offset) - minimum
/// with scale = unit * d * group scale, minimum = minimum_unit * dmin * group minimum (0 without minima), both of the
/// weight's group, and value(code) the code itself or its entry in the table. With zeros, the offset is the row's zero.
struct CodeBlock {
  std::uint8_t code[256];
  std::uint16_t number[64];  // of points, with Coding::points in place of codes
  std::uint32_t signs[8];    // with these: of each 32 columns; a set bit is a minus
  std::int8_t scale[16];     // with Scales::super, by group; with Scales::nibbles the nibble
  std::uint8_t minimum[16];
  std::uint32_t d;     // the bits of an FP16, BF16 or FP32
  std::uint16_t dmin;  // FP16
  std::uint8_t zero;
};

/// How the weights of a QuantFormat lie in a Matrix: every format becomes codes of 2, 3, 4, 5, 6 or 8 bits with an
/// affine meaning, so that one kernel, the dot product of unsigned with signed bytes, serves them all. Nothing is
/// rounded.
///
/// The integers of Hugging Face folders lie alike (integer_format), in records as wide as their groups of columns.
///
/// A panel of 16 rows is a sequence of records of 32, 64, 128 or 256 columns:
///     d [16]                                 16 bits each, or 32
///     dmin [16] if has_dmin()                16 bits each
///     zero [16] if zeros                     bytes
///     with Scales::nibbles: factors [factor_fields() / 4, rounded up][16 rows][2]    words of 16 bits
///     then for each 32 columns (a step):
///         with Scales::super: scale [groups][16], minimum [groups][16] if minima      bytes
///         codes: as packed_codes.h says
///     or, with Coding::trits, the codes of all columns
/// A quad is four columns, 64 bytes when expanded: what one VNNI instruction multiplies with four columns of a token.
/// Two neighbouring groups are a pair, whose factors lie in the two words of a row, so that a word's product with a
/// token's pair of 16 bits is a multiplication. A word has four fields of four bits: field 0 are the scales of the
/// record's first pair; then their minima, where these have fields of their own; then the next pair's.
struct PackedFormat {
  std::string_view name;
  const QuantFormat* stored = nullptr;  // null: integers
  int bits = 0;
  Scales scales = Scales::half;
  int columns = 32;  // of a record
  int group = 32;    // columns that share a scale within a step: 16 or 32
  bool minima = false;
  bool zeros = false;
  float offset = 0;  // 0 where there are minima or zeros
  float unit = 1, minimum_unit = 1;
  /// With Scales::nibbles: what they are. Minima have fields of their own, whose nibbles are the factors themselves,
  /// and a dmin; or, with minima_of_scale, they are minimum_of[the scale's nibble] times d.
  std::array<std::int8_t, 16> scale_of{};
  std::array<std::uint8_t, 16> minimum_of{};
  bool minima_of_scale = false;
  Coding coding = Coding::planes;
  const PointSet* points = nullptr;  // of Coding::trits and points
  bool deltas = false;               // with trits and a table: a bit for each 8 columns makes their codes 4 greater
  bool has_table = false;
  std::array<std::uint8_t, 16> table{};  // of codes of 3 or 4 bits
  void (*decode)(const std::byte* block, CodeBlock& out) = nullptr;

  static constexpr int kStep = 32, kPanel = 16, kQuads = 8, kQuadBytes = 64;
  static constexpr int kFactorBytes = kPanel * 2 * 2;  // of four fields

  constexpr int record() const { return columns; }
  constexpr int groups() const { return kStep / group; }  // of a step
  int code_bytes() const {                                // of a step; of trits: 0
    return coding == Coding::planes ? plane_bytes(bits) : coding == Coding::points ? point_bytes(*points) : 0;
  }
  constexpr int scale_bytes() const {  // of a step
    return scales == Scales::super ? groups() * kPanel * (minima ? 2 : 1) : 0;
  }
  int step_bytes() const { return scale_bytes() + code_bytes(); }
  constexpr int d_bytes() const { return scales == Scales::single ? 4 : 2; }
  constexpr bool has_dmin() const { return minima && !minima_of_scale; }
  constexpr int zero_at() const { return kPanel * (d_bytes() + (has_dmin() ? 2 : 0)); }  // in a record
  constexpr int factor_at() const { return zero_at() + (zeros ? kPanel : 0); }           // in a record
  constexpr int factor_fields() const {
    return scales == Scales::nibbles ? columns / group / 2 * (has_dmin() ? 2 : 1) : 0;
  }
  constexpr int head_bytes() const { return factor_at() + (factor_fields() + 3) / 4 * kFactorBytes; }
  constexpr int trit_bytes() const { return coding == Coding::trits ? kTritBytes + (deltas ? kDeltaBytes : 0) : 0; }
  int record_bytes() const { return head_bytes() + record() / kStep * step_bytes() + trit_bytes(); }
};

/// The packed form of a format; null for plain types (F32, F16, BF16), which are kept as they are.
const PackedFormat* packed_format(const QuantFormat& format);

/// The packed form of integers of 2, 3, 4 or 8 bits, worth (code - zero) * scale: with a zero for each row of a record,
/// or one (`zero`) for all. `columns` is the record's: 32, 64, 128 or 256. Lives as long as the program.
const PackedFormat& integer_format(int bits, Scales scales, int columns, std::optional<int> zero);

/// Gives the block of one row of a record.
using BlockOfRow = std::function<void(int row, CodeBlock& out)>;

/// Packs the blocks of 16 rows of one record, or of the first `rows` <= 16 of them, the others zero.
void pack_record(const PackedFormat& format, int rows, const BlockOfRow& block_of, std::byte* record);

/// The same for blocks as they are stored, `stride_bytes` from row to row.
void pack_record(const PackedFormat& format, const std::byte* blocks, std::int64_t stride_bytes, int rows,
                 std::byte* record);

/// A record as the kernels multiply it, or as its worth is looked up.
struct ExpandedRecord {
  static constexpr int kSteps = 8;
  alignas(64) std::uint8_t code[kSteps * PackedFormat::kQuads][PackedFormat::kPanel][4];  // table applied
  alignas(64) float scale[kSteps * 2][PackedFormat::kPanel];                              // by group
  alignas(64) float minimum[kSteps * 2][PackedFormat::kPanel];                            // offset included
  float offset[PackedFormat::kPanel];                                                     // 0 where there are minima
};

/// The plain form of what each instruction set does in its own way.
void expand_record(const PackedFormat& format, const std::byte* record, ExpandedRecord& out);

/// The worth of `count` columns (a multiple of the record's) of one row of a panel, to out.
void dequantize_row(const PackedFormat& format, const std::byte* panel, int row, std::int64_t count, float* out);

}  // namespace shoal
