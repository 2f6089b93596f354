#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

/// What the formats' source files share.
namespace shoal::formats {

/// An IEEE half as it lies in a block.
struct Half {
  std::uint16_t bits;
  float value() const { return f16_to_f32(bits); }
  /// The nearest; the largest where that would be infinite.
  static Half of(float f) { return {f32_to_f16(std::clamp(f, -65504.0f, 65504.0f))}; }
};

/// Elements of a super-block: the blocks of the K, IQ and ternary formats, with finer scales inside.
inline constexpr int kSuper = 256;

/// QuantFormat::dequantize for blocks of one struct. Block::kElements is how many elements it holds.
template <class Block, void (*Decode)(const Block&, float*)>
void dequantize_blocks(const std::byte* from, std::int64_t elements, float* to) {
  for (std::int64_t i = 0; i < elements; i += Block::kElements, from += sizeof(Block)) {
    Block block;  // a copy: the source need not be aligned
    std::memcpy(&block, from, sizeof block);
    Decode(block, to + i);
  }
}

/// QuantFormat::quantize likewise. Encode takes the block's values and their weights (null: 1).
template <class Block, void (*Encode)(const float*, const float*, Block&)>
void quantize_blocks(const float* from, std::int64_t elements, const float* importance, std::byte* to) {
  for (std::int64_t i = 0; i < elements; i += Block::kElements, to += sizeof(Block)) {
    Block block{};
    Encode(from + i, importance ? importance + i : nullptr, block);
    std::memcpy(to, &block, sizeof block);
  }
}

}  // namespace shoal::formats
