#pragma once
#include "kernels/cuda/packed_row.h"

// A step of a packed panel (16 rows, 32 columns) as the tensor cores take it: signed bytes in the fragments of
// mma_bytes(). Lane l, with g = l / 4 and t = l % 4, has rows g and g + 8, quads t and t + 4.
namespace shoal::cuda {

/// What of a layout may be known when a kernel is compiled.
struct LayoutTraits {
  int bits = 0;
  Scales scales = Scales::half;
  int group = 32;
  bool minima = false, has_table = false;
  Coding coding = Coding::planes;
  int point_columns = 8, extra_bits = 0;  // of points
  bool minima_of_scale = false;
  bool operator==(const LayoutTraits&) const = default;
};
/// Only matrices without zeros, whose bytes have no other offset than 128.
template <LayoutTraits kTraits>
struct KnownLayout : PackedLayout {
  static constexpr int bits = kTraits.bits, group = kTraits.group, point_columns = kTraits.point_columns,
                       extra_bits = kTraits.extra_bits;
  static constexpr Scales scales = kTraits.scales;
  static constexpr Coding coding = kTraits.coding;
  static constexpr bool minima = kTraits.minima, has_table = kTraits.has_table,
                        minima_of_scale = kTraits.minima_of_scale, zeros = false, odd_offsets = false;
};
/// Any other whose codes lie in planes and have a scale for 32 columns.
struct PlanesLayout : PackedLayout {
  static constexpr int group = 32;
  static constexpr Coding coding = Coding::planes;
  static constexpr bool odd_offsets = true;
};

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

/// What makes signed bytes of codes: they are looked up where there is a table, then `shift` is taken off.
template <class Layout>
struct SignedCodes {
  unsigned table[4] = {};
  unsigned bias = 0;
  float shift = 0;
  bool rest = false;  // whether codes are then still to have something taken off: a minimum, a zero, an odd offset

  /// All of the offset is taken off where it can be, so that codes are worth their product with the scale.
  __device__ __forceinline__ explicit SignedCodes(const Layout& f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) table[i] = reinterpret_cast<const unsigned*>(f.table)[i];
    const bool own = f.minima || f.zeros, whole_bytes = f.coding == Coding::planes && f.bits == 8;
    shift = whole_bytes ? 128.0f : own ? 0.0f : f.offset;
    bias = (128u - static_cast<unsigned>(shift)) * 0x01010101u;
    rest = own || (f.odd_offsets && whole_bytes && f.offset != shift);
  }
  __device__ __forceinline__ unsigned operator()(const Layout& f, unsigned codes) const {
    if (f.has_table) {
      const unsigned pairs = codes | codes >> 4, which = choose_bytes(pairs, 0, 0x4420) & 0x7777u;
      const unsigned upper = (codes >> 3 & 0x01010101u) * 0xffu;
      codes = (choose_bytes(table[0], table[1], which) & ~upper) | (choose_bytes(table[2], table[3], which) & upper);
    }
    return (codes + bias) ^ 0x80808080u;  // no byte reaches 256
  }
};

template <class Layout>
__device__ __forceinline__ void fragment_of(const Layout& f, const std::uint8_t* points,
                                            const SignedCodes<Layout>& sign, const std::byte* record, int step,
                                            int lane, unsigned (&a)[4]) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = g + 8 * h;
    if (f.coding != Coding::planes) {
      a[h] = quad_of_coded(f, points, record, step, t, row);
      a[h + 2] = quad_of_coded(f, points, record, step, t + 4, row);
    } else {
      const std::byte* codes = codes_of_step(f, record, step);
      const int low = bits_of_first_plane(f), high = f.bits - low;
      a[h] = quad_of_plane(codes, low, t, row);
      a[h + 2] = quad_of_plane(codes, low, t + 4, row);
      if (high > 0) {
        const std::byte* second = codes + low * kPanelRows * 4;
        a[h] |= quad_of_plane(second, high, t, row) << low;
        a[h + 2] |= quad_of_plane(second, high, t + 4, row) << low;
      }
    }
  }
#pragma unroll
  for (unsigned& quad : a) quad = sign(f, quad);
}

}  // namespace shoal::cuda
