#pragma once
#include <cstddef>
#include <cstdint>

#include "base/kv_type.h"

namespace shoal {

/// Writes `n` floats from column `column` of a row of `width` on. FP8 and INT8 round each to the nearest multiple that
/// the group's scale allows, which fits its largest magnitude; a group with a NaN or infinity comes back as NaN.
void encode_kv(KvType type, const float* x, std::int64_t n, std::int64_t column, std::int64_t width, std::byte* row);
/// One element. For tests and reference loops.
float decode_kv(KvType type, const std::byte* row, std::int64_t column, std::int64_t width);

}  // namespace shoal
