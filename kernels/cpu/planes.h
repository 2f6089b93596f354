#pragma once
#include <cstdint>
#include <cstring>

namespace shoal::cpu {
namespace {

/// Bits [kLow, kLow + kWidth) of a step's 8 quads of codes, from a plane (packed_codes.h); sets them where kLow is 0,
/// else adds them. Eight bytes at a time: what a shift brings in from a neighbour is masked off.
template <int kWidth, int kLow>
inline void take_plane_of_words(const std::uint8_t* from, std::uint8_t* codes) {
  constexpr std::uint64_t kMask = 0x0101010101010101u * ((1u << kWidth) - 1);
  std::uint64_t plane[kWidth][8], code[8];
  std::memcpy(plane, from, sizeof plane);
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    std::uint8_t* to = codes + q * 64;
    if (kLow > 0) std::memcpy(code, to, sizeof code);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const std::uint64_t bits = ((plane[q % kWidth][i] >> (q / kWidth * kWidth)) & kMask) << kLow;
      code[i] = kLow == 0 ? bits : code[i] | bits;
    }
    std::memcpy(to, code, sizeof code);
  }
}

}  // namespace
}  // namespace shoal::cpu
