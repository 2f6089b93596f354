#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/scales.h"

namespace shoal {

/// Of half a record of Coding::trits: quads whose codes are the first four trits of bytes, those whose codes are the
/// fifth, and the bytes.
constexpr int kWholeTritQuads = 24, kFifthTritQuads = 6, kHalfTritBytes = 6 * 64;

/// What a reader of packed codes (packed_codes.h) needs to know, as plain numbers.
struct CodeLayout {
  Coding coding;
  int bits, codes_at, step_bytes;  // codes_at: of step 0, in the record
  int point_columns, extra_bits;
  const std::uint8_t* points;        // PointSet::table
  const std::uint32_t* point_codes;  // PointSet::codes
  int deltas_at;                     // in the record; 0: none
};

/// The codes [8 quads][16 rows][4] of a step.
void take_codes(const CodeLayout& layout, const std::byte* record, int step, std::uint8_t* codes);

}  // namespace shoal
