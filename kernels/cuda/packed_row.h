#pragma once
#include "kernels/code_layout.h"
#include "kernels/cuda/convert.h"

// Reading packed panels (kernels/packed_format.h): 16 rows side by side, 32 columns a step, in quads of four columns.
// Half a warp holds a panel's rows: lane r and lane r + 16 share row r, the first the even quads, the second the odd
// ones, which lie in different bytes whatever the width of the planes.
//
// Layout: a PackedLayout, or one of which the compiler knows a part.
namespace shoal::cuda {

constexpr int kPanelRows = 16, kStepCols = 32, kQuads = 8;

/// Bytes of a row's quad in a plane of `bits` bits: byte i of part j holds quads j, j + bits, ...
__device__ __forceinline__ unsigned quad_of_plane(const std::byte* plane, int bits, int quad, int row) {
  const unsigned word = *reinterpret_cast<const unsigned*>(plane + ((quad & (bits - 1)) * kPanelRows + row) * 4);
  const unsigned mask = (1u << bits) - 1;
  return word >> (quad & -bits) & mask * 0x01010101u;  // bits: a power of two
}

/// Four fields of two bits as bytes, and four single bits.
__device__ __forceinline__ unsigned spread_pairs(unsigned fields) {
  return (fields | fields << 6 | fields << 12 | fields << 18) & 0x03030303u;
}
__device__ __forceinline__ unsigned spread_bits(unsigned bits) { return (bits * 0x00204081u) & 0x01010101u; }

/// Of Coding::points; `step` is where the step's numbers begin.
template <class Layout>
__device__ __forceinline__ unsigned quad_of_points(const Layout& f, const std::uint8_t* points, const std::byte* step,
                                                   int quad, int row) {
  const int quads = f.point_columns / 4, registers = quads == 1 ? 2 : 1;
  const int point = quad / quads, in_register = row * 4 + point % 4, size = 256 << f.extra_bits;
  const auto* numbers = reinterpret_cast<const std::uint8_t*>(step);
  const std::uint8_t* extra = numbers + registers * 64 + point / 4 * f.extra_bits * 8;
  unsigned number = numbers[point / 4 * 64 + in_register];
  for (int bit = 0; bit < f.extra_bits; ++bit)
    number |= (unsigned{extra[bit * 8 + in_register / 8]} >> (in_register % 8) & 1u) << (8 + bit);
  const std::uint8_t* signs = numbers + registers * (64 + f.extra_bits * 8) + row * 4;
  const unsigned four_signs = spread_bits(unsigned{signs[quad / 2]} >> (quad % 2 * 4) & 15u);
  if (quads == 2) return spread_pairs(points[quad % 2 * size + number]) | four_signs << 2;
  return spread_pairs(points[number]) | spread_bits(points[size + number]) << 2 | four_signs << 3;
}

/// Of Coding::trits.
template <class Layout>
__device__ __forceinline__ unsigned quad_of_trits(const Layout& f, const std::uint8_t* points, const std::byte* record,
                                                  int step, int quad, int row) {
  constexpr int kHalfSteps = 4;
  const auto* trits = reinterpret_cast<const std::uint8_t*>(record + f.head_bytes);
  const int half = step / kHalfSteps, of_half = step % kHalfSteps * kQuads + quad;
  const std::uint8_t* fives = trits + half * kHalfTritBytes;
  unsigned codes = 0;
  if (of_half < kWholeTritQuads) {
    codes = spread_pairs(points[fives[of_half / 4 * kPanelRows * 4 + row * 4 + of_half % 4]]);
  } else if (of_half < kWholeTritQuads + kFifthTritQuads) {
    const unsigned four = reinterpret_cast<const unsigned*>(fives + (of_half - kWholeTritQuads) * kPanelRows * 4)[row];
    for (int i = 0; i < 4; ++i) codes |= unsigned{points[256 + (four >> (8 * i) & 255u)]} << (8 * i);
  } else {
    codes = spread_pairs(trits[2 * kHalfTritBytes + row * 4 + half * 2 + of_half - kWholeTritQuads - kFifthTritQuads]);
  }
  if (f.deltas_at == 0) return codes;
  const auto* greater = reinterpret_cast<const std::uint8_t*>(record + f.deltas_at) + (step * kQuads + quad) / 2 * 2;
  return codes | (unsigned{greater[row / 8]} >> (row % 8) & 1u) * 0x04040404u;
}

/// Where the codes of a step in planes or points begin.
template <class Layout>
__device__ __forceinline__ const std::byte* codes_of_step(const Layout& f, const std::byte* record, int step) {
  return record + f.head_bytes + step * f.step_bytes + f.scale_bytes;
}
/// Bits of a code in planes that lie in the first of them; the others are in the second.
template <class Layout>
__device__ __forceinline__ int bits_of_first_plane(const Layout& f) {
  return f.bits == 3 ? 2 : f.bits == 5 || f.bits == 6 ? 4 : f.bits;
}

/// The codes of four columns of a step, a byte each, of Coding::points or trits.
template <class Layout>
__device__ __forceinline__ unsigned quad_of_coded(const Layout& f, const std::uint8_t* points, const std::byte* record,
                                                  int step, int quad, int row) {
  return f.coding == Coding::trits ? quad_of_trits(f, points, record, step, quad, row)
                                   : quad_of_points(f, points, codes_of_step(f, record, step), quad, row);
}

/// Of every coding, table entries looked up.
template <class Layout>
__device__ __forceinline__ unsigned quad_of(const Layout& f, const std::byte* record, int step, int quad, int row) {
  unsigned quad_codes;
  if (f.coding != Coding::planes) {
    quad_codes = quad_of_coded(f, f.points, record, step, quad, row);
  } else {
    const std::byte* codes = codes_of_step(f, record, step);
    const int low = bits_of_first_plane(f), high = f.bits - low;
    quad_codes = quad_of_plane(codes, low, quad, row);
    if (high > 0) quad_codes |= quad_of_plane(codes + low * kPanelRows * 4, high, quad, row) << low;
  }
  if (!f.has_table) return quad_codes;
  unsigned worth = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) worth |= static_cast<unsigned>(f.table[quad_codes >> (8 * i) & 15u]) << (8 * i);
  return worth;
}

struct GroupScale {
  float scale, minimum;  // a weight is worth scale * code - minimum
};

/// The nibble of a field of a row's group.
template <class Layout>
__device__ __forceinline__ unsigned nibble_of(const Layout& f, const std::byte* record, int group, int field, int row) {
  const std::byte* words = record + f.factor_at + field / 4 * kPanelRows * 4;
  const unsigned word = reinterpret_cast<const std::uint16_t*>(words)[row * 2 + group % 2];
  return word >> (field % 4 * 4) & 15u;
}

/// A row's share of a record's head: what its groups' scales and minima are multiplied with, and the code that is worth
/// zero where there are no minima.
struct RowHead {
  float scale, minimum, offset;
};
template <class Layout>
__device__ __forceinline__ RowHead head_of(const Layout& f, const std::byte* record, int row) {
  const auto* head = reinterpret_cast<const std::uint16_t*>(record);
  return {f.unit * (f.scales == Scales::single   ? reinterpret_cast<const float*>(record)[row]
                    : f.scales == Scales::bfloat ? widen_bf16(head[row])
                                                 : widen_f16(head[row])),
          f.minima ? f.minimum_unit * widen_f16(head[f.minima_of_scale ? row : kPanelRows + row]) : 0.0f,
          f.zeros ? static_cast<float>(static_cast<std::uint8_t>(record[f.zero_at + row])) : f.offset};
}

/// Of a row's group in step `s` of a record; `record` and `step` are where these begin.
template <class Layout>
__device__ __forceinline__ GroupScale scale_of_group(const Layout& f, const RowHead& head, const std::byte* record,
                                                     const std::byte* step, int s, int group, int row) {
  float scale = head.scale, minimum = head.minimum;
  const int groups = kStepCols / f.group;
  if (f.scales == Scales::nibbles) {
    const int of_record = s * groups + group;
    const bool own_minima = f.minima && !f.minima_of_scale;
    const int field = of_record / 2 * (own_minima ? 2 : 1);
    const unsigned n = nibble_of(f, record, of_record, field, row);
    scale *= static_cast<float>(f.scale_of[n]);
    if (f.minima)
      minimum *= static_cast<float>(own_minima ? nibble_of(f, record, of_record, field + 1, row) : f.minimum_of[n]);
  }
  if (f.scales == Scales::super) {
    const auto* factors = reinterpret_cast<const std::int8_t*>(step);
    scale *= static_cast<float>(factors[group * kPanelRows + row]);
    if (f.minima)
      minimum *= static_cast<float>(static_cast<std::uint8_t>(factors[(groups + group) * kPanelRows + row]));
  }
  return {scale, f.minima ? minimum : scale * head.offset};
}

}  // namespace shoal::cuda
