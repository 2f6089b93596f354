#pragma once
#include "kernels/formats/blocks.h"

/// Super-blocks of 256 whose groups of 8 or 4 elements are numbers of points of a grid (iq_grids.h), with signs apart.
namespace shoal::formats {

/// Groups of 32: pair p of qs (64 bits) holds four point numbers of 8 bits, four sign sets of 7 bits, and in the top
/// four bits the scale s: d * (s + 1/2) / 4 * point.
struct BlockIQ2_XXS {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint16_t qs[32];
};

/// qs: 9 bits of point number, 7 bits of signs for 8 elements; a scale of 4 bits for 16 elements, low half first.
struct BlockIQ2_XS {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint16_t qs[32];
  std::uint8_t scales[8];
};

/// Point numbers of 10 bits: low 8 in qs, high 2 in bits 2 * (k % 4) of qh[k / 4]; all 8 signs kept; scales as IQ2_XS.
struct BlockIQ2_S {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint8_t qs[32];
  std::uint8_t signs[32];
  std::uint8_t qh[8];
  std::uint8_t scales[8];
};

/// Point numbers of 8 bits for 4 elements; for 32 elements, 32 bits of signs (four sets of 7) and scale s (the top
/// four): d * (s + 1/2) / 2 * point.
struct BlockIQ3_XXS {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint8_t qs[64];
  std::uint8_t signs_and_scales[32];
};

/// Point numbers of 9 bits for 4 elements, the ninth in bit k % 8 of qh[k / 8]; all signs; a scale s of 4 bits for 32
/// elements: d * (2 s + 1) * point.
struct BlockIQ3_S {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint8_t qs[64];
  std::uint8_t qh[8];
  std::uint8_t signs[32];
  std::uint8_t scales[4];
};

/// Point numbers of 11 bits for 8 elements: low 8 in qs, high 3 in bits 3 * (k % 4) of qh[k / 4]; for 32 elements a
/// scale s in bits 12 to 14 of qh and the sign of delta = 1/8 in bit 15: d * (2 s + 1) * (point + delta).
struct BlockIQ1_S {
  static constexpr int kElements = kSuper;
  Half d;
  std::uint8_t qs[32];
  std::uint16_t qh[8];
};

/// As IQ1_S with a delta for each 8 elements (half k % 2 of qh[k / 2]: three bits of the point number, then the sign)
/// and a scale of 3 bits for each 16 (bits 3 * (g % 4) of scales[g / 4]). The top four bits of the four scales are d.
struct BlockIQ1_M {
  static constexpr int kElements = kSuper;
  std::uint8_t qs[32];
  std::uint8_t qh[16];
  std::uint16_t scales[4];

  Half d() const {
    return {static_cast<std::uint16_t>((scales[0] >> 12) | (scales[1] >> 12 << 4) | (scales[2] >> 12 << 8) |
                                       (scales[3] >> 12 << 12))};
  }
};

static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82);
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110);
static_assert(sizeof(BlockIQ1_S) == 50 && sizeof(BlockIQ1_M) == 56);

void decode(const BlockIQ2_XXS& block, float* out);
void decode(const BlockIQ2_XS& block, float* out);
void decode(const BlockIQ2_S& block, float* out);
void decode(const BlockIQ3_XXS& block, float* out);
void decode(const BlockIQ3_S& block, float* out);
void decode(const BlockIQ1_S& block, float* out);
void decode(const BlockIQ1_M& block, float* out);

void encode(const float* values, const float* importance, BlockIQ2_XXS& block);
void encode(const float* values, const float* importance, BlockIQ2_XS& block);
void encode(const float* values, const float* importance, BlockIQ2_S& block);
void encode(const float* values, const float* importance, BlockIQ3_XXS& block);
void encode(const float* values, const float* importance, BlockIQ3_S& block);
void encode(const float* values, const float* importance, BlockIQ1_S& block);
void encode(const float* values, const float* importance, BlockIQ1_M& block);

}  // namespace shoal::formats
