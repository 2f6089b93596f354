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

/// FiveTrits in one word: a code in each byte, the fifth above the first.
struct PackedTrits {
  const unsigned* of_byte;
  __device__ __forceinline__ static unsigned pack(const FiveTrits& trits, unsigned byte) {
    return trits.first_four(byte) | trits.fifth(byte) << 4;
  }
  __device__ __forceinline__ unsigned first_four(unsigned byte) const { return of_byte[byte] & 0x03030303u; }
  __device__ __forceinline__ unsigned fifth(unsigned byte) const { return of_byte[byte] >> 4 & 3u; }
};

/// Reads a step's codes as signed bytes. Points and trits are looked up in shared memory: points with what their
/// coordinates are worth.
template <class Layout>
class FragmentReader {
 public:
  /// Bytes of shared memory that it wants.
  static int room(const PackedLayout& f) {
    return f.coding == Coding::points  ? (256 << f.extra_bits) * f.point_columns
           : f.coding == Coding::trits ? 256 * 4
                                       : 0;
  }

  /// By all of the block's threads; what they write is there after the next __syncthreads().
  __device__ __forceinline__ FragmentReader(const Layout& f, const std::uint8_t* points, void* room, int thread,
                                            int threads)
      : f_(f), sign_(f), table_(static_cast<unsigned*>(room)) {
    if constexpr (Layout::coding == Coding::points) {
      constexpr int kQuadsOfPoint = Layout::point_columns / 4;
      for (int i = thread; i < (256 << f.extra_bits) * kQuadsOfPoint; i += threads)
        table_[i] = sign_(f, codes_of_point(f, points, static_cast<unsigned>(i / kQuadsOfPoint), i % kQuadsOfPoint));
    } else if constexpr (Layout::coding == Coding::trits) {
      for (int i = thread; i < 256; i += threads)
        table_[i] = PackedTrits::pack(FiveTrits{points}, static_cast<unsigned>(i));
    }
  }

  __device__ __forceinline__ float shift() const { return sign_.shift; }
  __device__ __forceinline__ bool rest() const { return sign_.rest; }

  __device__ __forceinline__ void read(const std::byte* record, int step, int lane, unsigned (&a)[4]) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) a[h + 2 * i] = quad(record, step, t + 4 * i, g + 8 * h);
  }

 private:
  __device__ __forceinline__ unsigned quad(const std::byte* record, int step, int n, int row) const {
    if constexpr (Layout::coding == Coding::points) {
      constexpr int kQuadsOfPoint = Layout::point_columns / 4;
      const PointOfQuad point = point_of_quad(f_, codes_of_step(f_, record, step), n, row);
      const unsigned worth = table_[point.number * kQuadsOfPoint + static_cast<unsigned>(n % kQuadsOfPoint)];
      const unsigned minus = spread_bits(point.signs);
      return (worth ^ minus * 0xffu) + minus;  // no coordinate is zero, so no byte carries into the next
    } else if constexpr (Layout::coding == Coding::trits) {
      return sign_(f_, quad_of_trits(f_, PackedTrits{table_}, record, step, n, row));
    } else {
      return sign_(f_, quad_of_planes(f_, record, step, n, row));
    }
  }

  const Layout& f_;
  const SignedCodes<Layout> sign_;
  unsigned* table_;
};

}  // namespace shoal::cuda
