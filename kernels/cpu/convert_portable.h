#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/planes.h"
#include "kernels/dtype.h"

namespace shoal::cpu {
namespace {

/// One E4M3 code as BF16, exact; NaN codes are not known here.
inline std::uint32_t f8_to_bf16(std::uint32_t code) {
  const std::uint32_t normal = ((code & 0x7fu) << 4) + (120u << 7);
  const std::uint32_t subnormal =
      __builtin_bit_cast(std::uint32_t, static_cast<float>(static_cast<std::int32_t>(code & 7u)) * 0x1p-9f) >> 16;
  return ((code & 0x78u) == 0 ? subnormal : normal) | ((code & 0x80u) << 8);
}

/// The conversions of a quantized record in plain C++ (see gemm_quantized.inl).
struct ConvertPortable {
  static constexpr bool kWideCodesAreSigned = false, kWholeFactors = false, kBytesInPlace = false,
                        kKnowsLayouts = false;
  static constexpr int kPanels = 1;

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

  static void take_nibbles(const std::byte* words, int shift, const std::uint8_t* table, std::uint8_t* to) {
    for (int r = 0; r < 16; ++r) {
      std::uint32_t word;
      std::memcpy(&word, words + r * 4, 4);
      to[r] = table[word >> shift & 15u];
    }
  }

  template <int kWidth, int kLow>
  static void take_plane(const std::uint8_t* from, std::uint8_t* codes) {
    take_plane_of_words<kWidth, kLow>(from, codes);
  }

  /// Two columns of 16 rows of F8 as pairs of BF16.
  static void f8_pairs(const std::byte* codes, std::byte* out) {
    for (int r = 0; r < 16; ++r) {
      const std::uint32_t pair =
          f8_to_bf16(static_cast<std::uint8_t>(codes[r])) | f8_to_bf16(static_cast<std::uint8_t>(codes[r + 16])) << 16;
      std::memcpy(out + r * 4, &pair, 4);
    }
  }

  static void pack_bf16(const float* x, std::byte* out) {
    for (int i = 0; i < 32; ++i) {
      const std::uint16_t bits = f32_to_bf16(x[i]);
      std::memcpy(out + i * 2, &bits, 2);
    }
  }

  static void look_up(std::uint8_t* codes, const std::uint8_t* table) {
    for (int i = 0; i < 512; ++i) codes[i] = table[codes[i]];
  }
  static void take_coded(const QuantizedLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
    take_codes(f.codes, record, step, codes);
    if (f.table) look_up(codes, f.table);
  }
};

}  // namespace
}  // namespace shoal::cpu
