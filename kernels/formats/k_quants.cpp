#include "kernels/formats/k_quants.h"

namespace shoal::formats {

ScalesAndMins unpack_scales(const std::uint8_t packed[12]) {
  ScalesAndMins r;
  for (int i = 0; i < 4; ++i) {
    const std::uint8_t a = packed[i], b = packed[4 + i], c = packed[8 + i];
    r.scale[i] = a & 63;
    r.min[i] = b & 63;
    r.scale[4 + i] = static_cast<std::uint8_t>((c & 15) | (a >> 6 << 4));
    r.min[4 + i] = static_cast<std::uint8_t>((c >> 4) | (b >> 6 << 4));
  }
  return r;
}

void pack_scales(const ScalesAndMins& v, std::uint8_t packed[12]) {
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<std::uint8_t>(v.scale[i] | (v.scale[4 + i] >> 4 << 6));
    packed[4 + i] = static_cast<std::uint8_t>(v.min[i] | (v.min[4 + i] >> 4 << 6));
    packed[8 + i] = static_cast<std::uint8_t>((v.scale[4 + i] & 15) | ((v.min[4 + i] & 15) << 4));
  }
}

void unpack_scales_q3(const std::uint8_t packed[12], std::uint8_t scale[16]) {
  for (int s = 0; s < 16; ++s) {
    const int low = (packed[s % 8] >> (s < 8 ? 0 : 4)) & 15;
    const int high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
    scale[s] = static_cast<std::uint8_t>(low | (high << 4));
  }
}

void pack_scales_q3(const std::uint8_t scale[16], std::uint8_t packed[12]) {
  std::memset(packed, 0, 12);
  for (int s = 0; s < 16; ++s) {
    packed[s % 8] |= static_cast<std::uint8_t>((scale[s] & 15) << (s < 8 ? 0 : 4));
    packed[8 + s % 4] |= static_cast<std::uint8_t>(scale[s] >> 4 << (2 * (s / 4)));
  }
}

void decode(const BlockQ2_K& b, float* out) {
  const float d = b.d.value(), dmin = b.dmin.value();
  for (int i = 0; i < kSuper; ++i) {
    const std::uint8_t s = b.scales[i / 16];
    const int q = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const float scale = d * static_cast<float>(s & 15), min = dmin * static_cast<float>(s >> 4);
    out[i] = scale * static_cast<float>(q) - min;
  }
}

void decode(const BlockQ3_K& b, float* out) {
  const float d = b.d.value();
  std::uint8_t scales[16];
  unpack_scales_q3(b.scales, scales);
  for (int i = 0; i < kSuper; ++i) {
    const int low = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const int high = (b.hmask[i % 32] >> (i / 32)) & 1;
    out[i] = d * static_cast<float>(scales[i / 16] - 32) * static_cast<float>(low - 4 * (1 - high));
  }
}

void decode(const BlockQ4_K& b, float* out) {
  const float d = b.d.value(), dmin = b.dmin.value();
  const ScalesAndMins s = unpack_scales(b.scales);
  for (int i = 0; i < kSuper; ++i) {
    const int q = (b.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 15;
    const float scale = d * static_cast<float>(s.scale[i / 32]), min = dmin * static_cast<float>(s.min[i / 32]);
    out[i] = scale * static_cast<float>(q) - min;
  }
}

void decode(const BlockQ5_K& b, float* out) {
  const float d = b.d.value(), dmin = b.dmin.value();
  const ScalesAndMins s = unpack_scales(b.scales);
  for (int i = 0; i < kSuper; ++i) {
    const int low = (b.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4)) & 15;
    const int q = low | ((b.qh[i % 32] >> (i / 32)) & 1) << 4;
    const float scale = d * static_cast<float>(s.scale[i / 32]), min = dmin * static_cast<float>(s.min[i / 32]);
    out[i] = scale * static_cast<float>(q) - min;
  }
}

void decode(const BlockQ6_K& b, float* out) {
  const float d = b.d.value();
  for (int i = 0; i < kSuper; ++i) {
    const int h = i / 128, k = i % 128 / 32, j = i % 32;
    const int low = (b.ql[64 * h + 32 * (k % 2) + j] >> (k / 2 * 4)) & 15;
    const int q = (low | ((b.qh[32 * h + j] >> (2 * k)) & 3) << 4) - 32;
    out[i] = d * static_cast<float>(b.scales[i / 16]) * static_cast<float>(q);
  }
}

}  // namespace shoal::formats
