#pragma once
#include "kernels/formats/blocks.h"

/// Elements of four bits that number one of sixteen fixed levels. Within 32 elements, element j is the low half of byte
/// j and element j + 16 the high half.
namespace shoal::formats {

/// The levels of IQ4_NL and IQ4_XS: finer around zero.
inline constexpr std::int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
/// Twice the values of E2M1, the 4-bit float of the OCP Microscaling specification.
inline constexpr std::int8_t kE2m1Levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// d * level
struct BlockIQ4_NL {
  static constexpr int kElements = 32;
  Half d;
  std::uint8_t qs[16];
};

/// 8 sub-blocks of 32: d * (scale - 32) * level; scale s has its low four bits in half s % 2 of scales_low[s / 2], its
/// high two in bits 2 s of scales_high.
struct BlockIQ4_XS {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint16_t scales_high;
  std::uint8_t scales_low[4];
  std::uint8_t qs[128];
};

/// 2^(e - 128) * level
struct BlockMXFP4 {
  static constexpr int kElements = 32;
  std::uint8_t e;
  std::uint8_t qs[16];
};

static_assert(sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136 && sizeof(BlockMXFP4) == 17);

void decode(const BlockIQ4_NL& block, float* out);
void decode(const BlockIQ4_XS& block, float* out);
void decode(const BlockMXFP4& block, float* out);

void encode(const float* values, const float* importance, BlockIQ4_NL& block);
void encode(const float* values, const float* importance, BlockIQ4_XS& block);
void encode(const float* values, const float* importance, BlockMXFP4& block);

}  // namespace shoal::formats
