#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/formats/format.h"

namespace shoal {

/// How the scales of a quantized matrix are kept.
enum class Scales : std::uint8_t {
  half,   // one FP16 for 32 columns, and another for their minimum where there are minima
  power,  // one BF16 for 32 columns: a power of two that FP16 does not reach
  super,  // a byte for each group, times one FP16 for 256 columns (the K, IQ and ternary formats)
};

/// One row's columns of a record, taken out of the stored block: what a weight is worth is
///     scale * (value(code) - offset) - minimum
/// with scale = unit * d * group scale, minimum = minimum_unit * dmin * group minimum (0 without minima), both of the
/// weight's group, and value(code) the code itself or its entry in the table.
struct CodeBlock {
  std::uint8_t code[256];
  std::int8_t scale[16];  // with Scales::super, by group
  std::uint8_t minimum[16];
  std::uint16_t d, dmin;  // FP16 (BF16 for d with Scales::power)
};

/// How the weights of a QuantFormat lie in a Matrix: every format becomes codes of 2, 3, 4, 5, 6 or 8 bits with an
/// affine meaning, so that one kernel, the dot product of unsigned with signed bytes, serves them all. Nothing is
/// rounded.
///
/// A panel of 16 rows is a sequence of records of 32 or 256 columns:
///     d [16], dmin [16] if minima            16 bits each
///     then for each 32 columns (a step):
///         with Scales::super: scale [groups][16], minimum [groups][16] if minima      bytes
///         codes: planes of 4, 2 and 1 bits (or of 8), each [quads][16 rows][4 columns]
/// A quad is four columns, 64 bytes when expanded: what one VNNI instruction multiplies with four columns of a token.
/// A plane of b bits has 8 / b quads in a byte: byte i of its part j holds those of quads j, j + b, j + 2 b, ...
struct PackedFormat {
  const QuantFormat* stored = nullptr;
  int bits = 0;
  Scales scales = Scales::half;
  int group = 32;  // columns that share a scale: 16 or 32
  bool minima = false;
  float offset = 0;  // 0 where there are minima
  float unit = 1, minimum_unit = 1;
  bool has_table = false;
  std::array<std::uint8_t, 16> table{};  // of codes of 3 or 4 bits
  void (*decode)(const std::byte* block, CodeBlock& out) = nullptr;

  static constexpr int kStep = 32, kPanel = 16, kQuads = 8, kQuadBytes = 64;

  constexpr int record() const { return scales == Scales::super ? 256 : kStep; }  // columns
  constexpr int groups() const { return kStep / group; }                          // of a step
  constexpr int code_bytes() const { return bits * kStep * kPanel / 8; }          // of a step
  constexpr int scale_bytes() const {                                             // of a step
    return scales == Scales::super ? groups() * kPanel * (minima ? 2 : 1) : 0;
  }
  constexpr int step_bytes() const { return scale_bytes() + code_bytes(); }
  constexpr int head_bytes() const { return kPanel * 2 * (minima ? 2 : 1); }
  constexpr int record_bytes() const { return head_bytes() + record() / kStep * step_bytes(); }
};

/// The packed form of a format; null for plain types (F32, F16, BF16), which are kept as they are.
const PackedFormat* packed_format(const QuantFormat& format);

/// Packs 16 rows' blocks of one record; `row(r)` of them at blocks + r * stride_bytes, `rows` <= 16, the others zero.
void pack_record(const PackedFormat& format, const std::byte* blocks, std::int64_t stride_bytes, int rows,
                 std::byte* record);

/// A record as the kernels multiply it, or as its worth is looked up.
struct ExpandedRecord {
  static constexpr int kSteps = 8;
  alignas(64) std::uint8_t code[kSteps * PackedFormat::kQuads][PackedFormat::kPanel][4];  // table applied
  alignas(64) float scale[kSteps * 2][PackedFormat::kPanel];                              // by group
  alignas(64) float minimum[kSteps * 2][PackedFormat::kPanel];                            // offset included
};

/// The plain form of what each instruction set does in its own way.
void expand_record(const PackedFormat& format, const std::byte* record, ExpandedRecord& out);

/// The worth of `count` columns (a multiple of the record's) of one row of a panel, to out.
void dequantize_row(const PackedFormat& format, const std::byte* panel, int row, std::int64_t count, float* out);

}  // namespace shoal
