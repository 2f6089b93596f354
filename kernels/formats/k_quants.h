#pragma once
#include "kernels/formats/blocks.h"

/// Super-blocks of 256: sub-blocks of 16 or 32 whose scales are themselves integers times the super-block's scale.
namespace shoal::formats {

/// 16 sub-blocks of 16: d * (scale & 15) * q - dmin * (scale >> 4), q of 2 bits. Half h (128 elements), element
/// 32 * k + j of it: bits 2k and 2k + 1 of qs[32 * h + j].
struct BlockQ2_K {
  static constexpr int kElements = kSuper;
  std::uint8_t scales[16];
  std::uint8_t qs[64];
  Half d, dmin;
};

/// 16 sub-blocks of 16: d * (scale - 32) * (q - 4 * !high), q of 2 bits as in Q2_K, `high` bit (4 * h + k) of
/// hmask[j], scale of 6 bits: scale s has its low four bits in scales[s % 8] (the low half of the byte where s < 8) and
/// its high two in bits 2 * (s / 4) of scales[8 + s % 4].
struct BlockQ3_K {
  static constexpr int kElements = kSuper;
  std::uint8_t hmask[32];
  std::uint8_t qs[64];
  std::uint8_t scales[12];
  Half d;
};

/// 8 sub-blocks of 32: d * scale * q - dmin * min, scales and minima of 6 bits packed as unpack_scales says. Sub-block
/// 2k is the low four bits of qs[32 * k + j], sub-block 2k + 1 the high four.
struct BlockQ4_K {
  static constexpr int kElements = kSuper;
  Half d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qs[128];
};

/// As Q4_K, with the fifth bit of sub-block s, element j, in bit s of qh[j].
struct BlockQ5_K {
  static constexpr int kElements = kSuper;
  Half d, dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];
  std::uint8_t qs[128];
};

/// 16 sub-blocks of 16: d * scale * (q - 32). Half h, quarter k, element j: low four bits in half k / 2 of the byte
/// ql[64 * h + 32 * (k % 2) + j], high two in bits 2k of qh[32 * h + j].
struct BlockQ6_K {
  static constexpr int kElements = kSuper;
  std::uint8_t ql[128];
  std::uint8_t qh[64];
  std::int8_t scales[16];
  Half d;
};

static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

/// The 8 scales and 8 minima of Q4_K and Q5_K. The first four of each lie in the low six bits of packed[0..3] and
/// packed[4..7]; of the last four, the low four bits share packed[8..11] (scale low, minimum high), the high two are
/// the free bits of the first eight bytes.
struct ScalesAndMins {
  std::uint8_t scale[8], min[8];
};
ScalesAndMins unpack_scales(const std::uint8_t packed[12]);
void pack_scales(const ScalesAndMins& values, std::uint8_t packed[12]);
/// The 16 scales of Q3_K, 0 to 63 (the 32 not yet taken away).
void unpack_scales_q3(const std::uint8_t packed[12], std::uint8_t scale[16]);
void pack_scales_q3(const std::uint8_t scale[16], std::uint8_t packed[12]);

void decode(const BlockQ2_K& block, float* out);
void decode(const BlockQ3_K& block, float* out);
void decode(const BlockQ4_K& block, float* out);
void decode(const BlockQ5_K& block, float* out);
void decode(const BlockQ6_K& block, float* out);

void encode(const float* values, const float* importance, BlockQ2_K& block);
void encode(const float* values, const float* importance, BlockQ3_K& block);
void encode(const float* values, const float* importance, BlockQ4_K& block);
void encode(const float* values, const float* importance, BlockQ5_K& block);
void encode(const float* values, const float* importance, BlockQ6_K& block);

}  // namespace shoal::formats
