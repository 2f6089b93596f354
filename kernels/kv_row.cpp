#include "kernels/kv_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dtype.h"

namespace shoal {
namespace {

std::uint8_t to_int8(float f) { return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(f))); }

/// The least BF16 that is not below f.
std::uint16_t bf16_above(float f) {
  const auto bits = std::bit_cast<std::uint32_t>(f);
  return static_cast<std::uint16_t>((bits + 0xffffu) >> 16);
}

void encode_group(KvType type, const float* x, std::int64_t n, std::byte* scale_at, std::byte* values) {
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::abs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  const std::uint16_t scale = finite ? bf16_above(largest / (type == KvType::fp8 ? 448.0f : 127.0f)) : 0x7fc0;
  std::memcpy(scale_at, &scale, sizeof scale);
  const float s = bf16_to_f32(scale);
  for (std::int64_t i = 0; i < n; ++i) {
    const float scaled = s > 0 ? x[i] / s : 0.0f;  // 0 for NaN too, which its scale brings back
    values[i] = static_cast<std::byte>(type == KvType::fp8 ? f32_to_f8_e4m3(scaled) : to_int8(scaled));
  }
}

}  // namespace

void encode_kv(KvType type, const float* x, std::int64_t n, std::int64_t column, std::int64_t width, std::byte* row) {
  if (type == KvType::f32) {
    std::memcpy(row + column * 4, x, static_cast<std::size_t>(n) * 4);
  } else if (type == KvType::bf16) {
    for (std::int64_t i = 0; i < n; ++i) {
      const std::uint16_t value = f32_to_bf16(x[i]);
      std::memcpy(row + (column + i) * 2, &value, 2);
    }
  } else {
    std::byte* values = row + 2 * kv_groups(width);
    for (std::int64_t i = 0; i < n; i += kKvGroup) {
      encode_group(type, x + i, std::min<std::int64_t>(kKvGroup, n - i), row + (column + i) / kKvGroup * 2,
                   values + column + i);
    }
  }
}

float decode_kv(KvType type, const std::byte* row, std::int64_t column, std::int64_t width) {
  if (type == KvType::f32) {
    float f;
    std::memcpy(&f, row + column * 4, 4);
    return f;
  }
  std::uint16_t half;  // the value, or its scale
  std::memcpy(&half, row + (type == KvType::bf16 ? column : column / kKvGroup) * 2, 2);
  if (type == KvType::bf16) return bf16_to_f32(half);
  const auto value = std::to_integer<std::uint8_t>(row[2 * kv_groups(width) + column]);
  return bf16_to_f32(half) *
         (type == KvType::fp8 ? f8_e4m3_to_f32(value) : static_cast<float>(static_cast<std::int8_t>(value)));
}

}  // namespace shoal
