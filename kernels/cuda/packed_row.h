#pragma once
#include <type_traits>

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

/// A row's point that a quad lies in, and its signs; `step` is where the step's numbers begin.
struct PointOfQuad {
  unsigned number, signs;  // the quad's four bits
};
template <class Layout>
__device__ __forceinline__ PointOfQuad point_of_quad(const Layout& f, const std::byte* step, int quad, int row) {
  const int quads = f.point_columns / 4, registers = quads == 1 ? 2 : 1;
  const int point = quad / quads, in_register = row * 4 + point % 4;
  const auto* numbers = reinterpret_cast<const std::uint8_t*>(step);
  const std::uint8_t* extra = numbers + registers * 64 + point / 4 * f.extra_bits * 8;
  unsigned number = numbers[point / 4 * 64 + in_register];
  for (int bit = 0; bit < f.extra_bits; ++bit)
    number |= (unsigned{extra[bit * 8 + in_register / 8]} >> (in_register % 8) & 1u) << (8 + bit);
  const std::uint8_t* signs = numbers + registers * (64 + f.extra_bits * 8) + row * 4;
  return {number, unsigned{signs[quad / 2]} >> (quad % 2 * 4) & 15u};
}
/// The codes of a quad of a point, without signs.
template <class Layout>
__device__ __forceinline__ unsigned codes_of_point(const Layout& f, const std::uint8_t* points, unsigned number,
                                                   int quad) {
  const int size = 256 << f.extra_bits;
  if (f.point_columns == 8) return spread_pairs(points[quad % 2 * size + number]);
  return spread_pairs(points[number]) | spread_bits(points[size + number]) << 2;
}

/// What a byte of five trits stands for, by a PointSet's table.
struct FiveTrits {
  const std::uint8_t* points;
  __device__ __forceinline__ unsigned first_four(unsigned byte) const { return spread_pairs(points[byte]); }
  __device__ __forceinline__ unsigned fifth(unsigned byte) const { return points[256 + byte]; }
};
/// Of Coding::trits.
template <class Layout, class Trits>
__device__ __forceinline__ unsigned quad_of_trits(const Layout& f, const Trits& trits_of, const std::byte* record,
                                                  int step, int quad, int row) {
  constexpr int kHalfSteps = 4;
  const auto* trits = reinterpret_cast<const std::uint8_t*>(record + f.head_bytes);
  const int half = step / kHalfSteps, of_half = step % kHalfSteps * kQuads + quad;
  const std::uint8_t* fives = trits + half * kHalfTritBytes;
  unsigned codes = 0;
  if (of_half < kWholeTritQuads) {
    codes = trits_of.first_four(fives[of_half / 4 * kPanelRows * 4 + row * 4 + of_half % 4]);
  } else if (of_half < kWholeTritQuads + kFifthTritQuads) {
    const unsigned four = reinterpret_cast<const unsigned*>(fives + (of_half - kWholeTritQuads) * kPanelRows * 4)[row];
    for (int i = 0; i < 4; ++i) codes |= trits_of.fifth(four >> (8 * i) & 255u) << (8 * i);
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

/// The codes of four columns of a step, a byte each, of Coding::planes.
template <class Layout>
__device__ __forceinline__ unsigned quad_of_planes(const Layout& f, const std::byte* record, int step, int quad,
                                                   int row) {
  const std::byte* codes = codes_of_step(f, record, step);
  const int low = bits_of_first_plane(f), high = f.bits - low;
  unsigned quad_codes = quad_of_plane(codes, low, quad, row);
  if (high > 0) quad_codes |= quad_of_plane(codes + low * kPanelRows * 4, high, quad, row) << low;
  return quad_codes;
}

/// Of every coding, table entries looked up.
__device__ __forceinline__ unsigned quad_of(const PackedLayout& f, const std::byte* record, int step, int quad,
                                            int row) {
  unsigned quad_codes;
  if (f.coding == Coding::trits) {
    quad_codes = quad_of_trits(f, FiveTrits{f.points}, record, step, quad, row);
  } else if (f.coding == Coding::points) {
    const PointOfQuad point = point_of_quad(f, codes_of_step(f, record, step), quad, row);
    quad_codes = codes_of_point(f, f.points, point.number, quad) | spread_bits(point.signs)
                                                                       << (f.point_columns == 8 ? 2 : 3);
  } else {
    quad_codes = quad_of_planes(f, record, step, quad, row);
  }
  if (!f.has_table) return quad_codes;
  unsigned worth = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) worth |= static_cast<unsigned>(f.table[quad_codes >> (8 * i) & 15u]) << (8 * i);
  return worth;
}

/// The bytes of `a` (0 to 3) and `b` (4 to 7) that the nibbles of `which` name.
__device__ __forceinline__ unsigned choose_bytes(unsigned a, unsigned b, unsigned which) {
#ifdef SHOAL_CUDA_EMULATION
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned n = which >> (4 * i) & 7u;
    chosen |= ((n < 4 ? a : b) >> (8 * (n % 4)) & 0xffu) << (8 * i);
  }
  return chosen;
#else
  return __byte_perm(a, b, which);
#endif
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

/// Entry n of a table of 16 bytes below 128, of a layout in global memory or a kernel's argument. Lanes ask for
/// different ones, which constant memory would bring one after the other: so an argument's table is read from
/// registers.
template <class Layout, class Byte>
__device__ __forceinline__ int entry_of(const Byte (&table)[16], unsigned n) {
  if constexpr (std::is_same_v<Layout, PackedLayout>) {
    return table[n];
  } else {
    const auto* words = reinterpret_cast<const unsigned*>(table);
    return static_cast<int>((n < 8 ? choose_bytes(words[0], words[1], n) : choose_bytes(words[2], words[3], n & 7u)) &
                            0xffu);
  }
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
    scale *= static_cast<float>(entry_of<Layout>(f.scale_of, n));
    if (f.minima)
      minimum *= static_cast<float>(own_minima ? nibble_of(f, record, of_record, field + 1, row)
                                               : entry_of<Layout>(f.minimum_of, n));
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
