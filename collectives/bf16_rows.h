#pragma once
#include <cstdint>
#include <span>

namespace shoal {

/// Rounds to BF16: to nearest, ties to even; NaN stays NaN. `to` is as long as `from`.
void pack_bf16(std::span<const float> from, std::uint16_t* to);
void unpack_bf16(std::span<const std::uint16_t> from, float* to);
/// to += from
void add_bf16(std::span<const std::uint16_t> from, float* to);

}  // namespace shoal
