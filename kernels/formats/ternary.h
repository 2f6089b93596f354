#pragma once
#include "kernels/formats/blocks.h"

/// Super-blocks of 256 elements -d, 0 or d.
namespace shoal::formats {

/// Five elements a byte: the byte is a fraction of 243, rounded up to 256ths, and its ternary digits are the elements.
/// Digit n of qs[j] is element 32 n + j for j < 32, 160 + 16 n + (j - 32) for j < 48, then 240 + 4 n + (j - 48), n < 4.
struct BlockTQ1_0 {
  static constexpr int kElements = kSuper;
  std::uint8_t qs[52];
  Half d;
};

/// Two bits each, 0 to 2: element 32 * k + j of half h is in bits 2k of qs[32 * h + j]. (A stored 3 counts as 2 d.)
struct BlockTQ2_0 {
  static constexpr int kElements = kSuper;
  std::uint8_t qs[64];
  Half d;
};

static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66);

void decode(const BlockTQ1_0& block, float* out);
void decode(const BlockTQ2_0& block, float* out);

void encode(const float* values, const float* importance, BlockTQ1_0& block);
void encode(const float* values, const float* importance, BlockTQ2_0& block);

}  // namespace shoal::formats
