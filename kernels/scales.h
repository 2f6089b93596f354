#pragma once
#include <cstdint>

namespace shoal {

/// How the scales of a quantized matrix are kept.
enum class Scales : std::uint8_t {
  half,    // one FP16 a record, and another for the minimum where there are minima
  bfloat,  // one BF16 a record
  single,  // one FP32 a record
  super,   // a byte for each group, times one FP16 for 256 columns (K formats, IQ4_XS)
  nibbles  // four bits for each group, times one FP16 for 256 columns (Q2_K, IQ1 to IQ3)
};

/// How its codes are kept (packed_codes.h).
enum class Coding : std::uint8_t {
  planes,  // bit by bit
  trits,   // five codes of three values in a byte
  points,  // the number of a point in a fixed set (iq_grids.h), and signs
};

}  // namespace shoal
