#include "kernels/formats/legacy.h"

#include "kernels/formats/fit.h"

namespace shoal::formats {
namespace {

int nibble(const std::uint8_t qs[16], int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }
int fifth(const std::uint8_t qh[4], int i) { return ((qh[i / 8] >> (i % 8)) & 1) << 4; }

void put_nibbles(const std::uint8_t q[32], std::uint8_t qs[16]) {
  for (int i = 0; i < 16; ++i) qs[i] = static_cast<std::uint8_t>((q[i] & 15) | (q[i + 16] & 15) << 4);
}
void put_fifths(const std::uint8_t q[32], std::uint8_t qh[4]) {
  for (int i = 0; i < 32; ++i) qh[i / 8] |= static_cast<std::uint8_t>(q[i] >> 4 << (i % 8));
}

/// A scale for levels around zero, and the levels counted from the lowest.
template <int levels, class Block>
void encode_centred(const float* values, const float* importance, Block& block, std::uint8_t q[32]) {
  const float scale = fit_scale(values, importance, 32, -levels / 2, levels / 2 - 1);
  block.d = Half::of(scale);
  const float d = block.d.value();
  for (int i = 0; i < 32; ++i) {
    q[i] = static_cast<std::uint8_t>(nearest_level(values[i], d, -levels / 2, levels / 2 - 1) + levels / 2);
  }
}

/// A scale and an offset for levels from zero up.
template <int levels, class Block>
void encode_offset(const float* values, const float* importance, Block& block, std::uint8_t q[32]) {
  const ScaleAndOffset fit = fit_scale_and_offset(values, importance, 32, levels - 1);
  block.d = Half::of(fit.scale);
  block.m = Half::of(fit.offset);
  const float d = block.d.value(), m = block.m.value();
  for (int i = 0; i < 32; ++i) q[i] = static_cast<std::uint8_t>(nearest_level(values[i] - m, d, 0, levels - 1));
}

}  // namespace

void decode(const BlockQ4_0& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b.qs, i) - 8);
}

void decode(const BlockQ4_1& b, float* out) {
  const float d = b.d.value(), m = b.m.value();
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b.qs, i)) + m;
}

void decode(const BlockQ5_0& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>((nibble(b.qs, i) | fifth(b.qh, i)) - 16);
}

void decode(const BlockQ5_1& b, float* out) {
  const float d = b.d.value(), m = b.m.value();
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(nibble(b.qs, i) | fifth(b.qh, i)) + m;
}

void decode(const BlockQ8_0& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(b.qs[i]) * d;
}

void encode(const float* values, const float* importance, BlockQ4_0& block) {
  std::uint8_t q[32];
  encode_centred<16>(values, importance, block, q);
  put_nibbles(q, block.qs);
}

void encode(const float* values, const float* importance, BlockQ4_1& block) {
  std::uint8_t q[32];
  encode_offset<16>(values, importance, block, q);
  put_nibbles(q, block.qs);
}

void encode(const float* values, const float* importance, BlockQ5_0& block) {
  std::uint8_t q[32];
  encode_centred<32>(values, importance, block, q);
  put_nibbles(q, block.qs);
  put_fifths(q, block.qh);
}

void encode(const float* values, const float* importance, BlockQ5_1& block) {
  std::uint8_t q[32];
  encode_offset<32>(values, importance, block, q);
  put_nibbles(q, block.qs);
  put_fifths(q, block.qh);
}

void encode(const float* values, const float* importance, BlockQ8_0& block) {
  block.d = Half::of(fit_scale(values, importance, 32, -127, 127));
  const float d = block.d.value();
  for (int i = 0; i < 32; ++i) block.qs[i] = static_cast<std::int8_t>(nearest_level(values[i], d, -127, 127));
}

}  // namespace shoal::formats
