#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/dtype.h"

namespace shoal::cpu {
namespace {

/// The conversions of a quantized record in plain C++ (see gemm_quantized.inl).
struct ConvertPortable {
  static constexpr bool kWideCodesAreSigned = false;

  static void halves(const std::byte* from, float* to) {
    for (int r = 0; r < 16; ++r) {
      std::uint16_t bits;
      std::memcpy(&bits, from + 2 * r, 2);
      to[r] = f16_to_f32(bits);
    }
  }

  static void multiply_signed(const float* by, const std::byte* bytes, float* to) {
    for (int r = 0; r < 16; ++r) to[r] = by[r] * static_cast<float>(static_cast<std::int8_t>(bytes[r]));
  }
  static void multiply_unsigned(const float* by, const std::byte* bytes, float* to) {
    for (int r = 0; r < 16; ++r) to[r] = by[r] * static_cast<float>(static_cast<std::uint8_t>(bytes[r]));
  }

  static void look_up(std::uint8_t* codes, const std::uint8_t* table) {
    for (int i = 0; i < 512; ++i) codes[i] = table[codes[i]];
  }
};

}  // namespace
}  // namespace shoal::cpu
