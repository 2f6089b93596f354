#pragma once
#include "kernels/formats/blocks.h"

/// Blocks of 32 with one scale, and in the _1 formats a minimum. Element i < 16 is the low four bits of qs[i], element
/// i + 16 the high four.
namespace shoal::formats {

/// d * (q - 8)
struct BlockQ4_0 {
  static constexpr int kElements = 32;
  Half d;
  std::uint8_t qs[16];
};

/// d * q + m
struct BlockQ4_1 {
  static constexpr int kElements = 32;
  Half d, m;
  std::uint8_t qs[16];
};

/// d * (q - 16); bit i of qh (little endian) is the fifth bit of element i
struct BlockQ5_0 {
  static constexpr int kElements = 32;
  Half d;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};

/// d * q + m
struct BlockQ5_1 {
  static constexpr int kElements = 32;
  Half d, m;
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};

/// d * q
struct BlockQ8_0 {
  static constexpr int kElements = 32;
  Half d;
  std::int8_t qs[32];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34);

void decode(const BlockQ4_0& block, float* out);
void decode(const BlockQ4_1& block, float* out);
void decode(const BlockQ5_0& block, float* out);
void decode(const BlockQ5_1& block, float* out);
void decode(const BlockQ8_0& block, float* out);

void encode(const float* values, const float* importance, BlockQ4_0& block);
void encode(const float* values, const float* importance, BlockQ4_1& block);
void encode(const float* values, const float* importance, BlockQ5_0& block);
void encode(const float* values, const float* importance, BlockQ5_1& block);
void encode(const float* values, const float* importance, BlockQ8_0& block);

}  // namespace shoal::formats
