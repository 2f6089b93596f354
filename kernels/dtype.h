#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace shoal {

/// Element types of weights and caches. (The GGUF block types join here.)
enum class DType : std::uint8_t { f32, f16, bf16, f8_e4m3 };

constexpr std::size_t size_of(DType t) { return t == DType::f32 ? 4 : t == DType::f8_e4m3 ? 1 : 2; }

constexpr std::string_view name_of(DType t) {
  switch (t) {
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::f8_e4m3:
      return "F8_E4M3";
  }
  return "?";
}

constexpr float bf16_to_f32(std::uint16_t v) { return std::bit_cast<float>(std::uint32_t{v} << 16); }

/// Round to nearest, ties to even; NaN stays NaN.
constexpr std::uint16_t f32_to_bf16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

constexpr float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal or zero
  return sign ? -tiny : tiny;
}

/// Round to nearest, ties to even; too large becomes infinite, NaN stays NaN.
constexpr std::uint16_t f32_to_f16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65536 and above
  const std::uint32_t exponent = magnitude >> 23;
  if (exponent < 102) return sign;  // below half of the smallest subnormal
  // Bits that the shorter mantissa loses: 13 of a normal number, more of a subnormal one.
  const std::uint32_t shift = exponent < 113 ? 126 - exponent : 13;
  const std::uint32_t mantissa = exponent < 113 ? (magnitude & 0x7fffffu) | 0x800000u : magnitude - (112u << 23);
  const std::uint32_t odd = (mantissa >> shift) & 1u;
  return static_cast<std::uint16_t>(sign | ((mantissa + (1u << (shift - 1)) - 1 + odd) >> shift));
}

/// E4M3 as in "FP8 Formats for Deep Learning" (arXiv 2209.05433): no infinities, 0x7f and 0xff are NaN, largest 448.
constexpr float f8_e4m3_to_f32(std::uint8_t v) {
  const std::uint32_t sign = (v & 0x80u) << 24, exponent = (v >> 3) & 15u, mantissa = v & 7u;
  if ((v & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
  const float tiny = static_cast<float>(mantissa) * 0x1p-9f;
  return sign ? -tiny : tiny;
}

/// Round to nearest, ties to even; beyond 448 to 448, and NaN becomes some number.
inline std::uint8_t f32_to_f8_e4m3(float f) {
  const auto bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  // 2^-6 is the smallest normal number; below it lie multiples of 2^-9.
  if (magnitude < 0x3c800000u)
    return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(std::nearbyint(std::abs(f) * 512.0f)));
  const std::uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | std::min<std::uint32_t>((rounded >> 20) - (120u << 3), 0x7eu));
}

/// An element as it lies in memory.
inline float element_to_f32(DType type, const std::byte* p) {
  std::uint16_t half = 0;
  switch (type) {
    case DType::f32: {
      float f;
      std::memcpy(&f, p, 4);
      return f;
    }
    case DType::f16:
      std::memcpy(&half, p, 2);
      return f16_to_f32(half);
    case DType::bf16:
      std::memcpy(&half, p, 2);
      return bf16_to_f32(half);
    case DType::f8_e4m3:
      return f8_e4m3_to_f32(static_cast<std::uint8_t>(*p));
  }
  return 0;
}

}  // namespace shoal
