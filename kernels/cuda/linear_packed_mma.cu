#include "kernels/cuda/packed_fragment.h"
#include "kernels/cuda/packed_mma.h"

namespace shoal::cuda {
namespace {

using namespace packed_mma;

constexpr int kChunkColumns = kMostColumns, kXRow = row_bytes(kChunkColumns, 1), kScaleRow = scale_row(kChunkColumns);

/// The products of a step's 16 rows with eight activation rows, brought to scale: sum [4] as mma_bytes() has it.
/// `activations` [8][kXRow], from this step's columns on; scale [8][kScaleRow].
template <int kGroup>
__device__ __forceinline__ void add_step(const unsigned (&a)[4], const GroupScale (&of_row)[2][kStepCols / kGroup],
                                         bool minima, const std::byte* activations, const float* scale, int lane,
                                         float (&sum)[4]) {
  constexpr int kGroups = kStepCols / kGroup;
  constexpr unsigned kOnes = 0x01010101u;
  const int g = lane / 4, t = lane % 4;
  const auto* words = reinterpret_cast<const unsigned*>(activations + g * kXRow);
  const unsigned b[2] = {words[t], words[t + 4]};
  int product[kGroups][4] = {}, total[kGroups][4] = {};
  if constexpr (kGroups == 1) {
    mma_bytes(product[0], a, b);
    if (minima) {
      const unsigned ones[4] = {kOnes, kOnes, kOnes, kOnes};
      mma_bytes(total[0], ones, b);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned half[2] = {a[2 * i], a[2 * i + 1]}, columns[1] = {b[i]};
      mma_bytes(product[i], half, columns);
      if (minima) {
        const unsigned ones[2] = {kOnes, kOnes};
        mma_bytes(total[i], ones, columns);
      }
    }
  }
  const float x_scale[2] = {scale[2 * t * kScaleRow], scale[(2 * t + 1) * kScaleRow]};
#pragma unroll
  for (int n = 0; n < kGroups; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const GroupScale& s = of_row[i / 2][n];
      float worth = s.scale * static_cast<float>(product[n][i]);
      if (minima) worth = fmaf(-s.minimum, static_cast<float>(total[n][i]), worth);
      sum[i] = fmaf(x_scale[i % 2], worth, sum[i]);
    }
}

/// What packed_mma::multiply() makes of them: a step's sums are whole numbers, brought to scale with those of the
/// weights and of the activations.
template <class Layout>
class ByteProduct {
 public:
  static constexpr int kChunk = kChunkColumns, kElement = 1;
  static constexpr bool kScaled = true, kLooksUp = Layout::coding != Coding::planes;
  static constexpr int panels_each(int) { return 1; }
  __device__ __forceinline__ static int output_of(int g, int half) { return g + 8 * half; }

  __device__ __forceinline__ ByteProduct(const Layout& f, const Weights& w, void* room, int thread)
      : f_(f), codes_(f, w.packed.points, room, thread, kThreads) {}

  template <int kBlocks>
  __device__ __forceinline__ void add_record(const std::byte* record, const std::byte* x, const float* x_scale,
                                             int lane, float (&sum)[kBlocks][4]) const {
    constexpr int kGroup = Layout::group, kGroups = kStepCols / kGroup;
    const int g = lane / 4;
    RowHead head[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      head[h] = head_of(f_, record, output_of(g, h));
      head[h].offset -= codes_.shift();
    }
#pragma unroll 1
    for (int step = 0; step < f_.record / kStepCols; ++step, x += kStepCols, ++x_scale) {
      const std::byte* at = record + f_.head_bytes + step * f_.step_bytes;
      GroupScale scale[2][kGroups];
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < kGroups; ++i)
          scale[h][i] = scale_of_group(f_, head[h], record, at, step, i, output_of(g, h));
      unsigned a[4];
      codes_.read(record, step, lane, a);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
        add_step<kGroup>(a, scale, codes_.rest(), x + b * 8 * kXRow, x_scale + b * 8 * kScaleRow, lane, sum[b]);
    }
  }

 private:
  const Layout& f_;
  const FragmentReader<Layout> codes_;
};

/// Products of quantized weights with activations in bytes on the tensor cores of every GPU from sm_80 on.
///   shape      x [rows, cols] INT8 with a scale for 32 columns, weights [outputs, cols] in packed panels -> FP32
///   precision  exact integer dot products of a group (16 or 32 columns), FP32 scales and sums
///   grid       of 8 or 16 rows (tiles, panels of 16 outputs), a block's four warps take a quarter of the columns each;
///              of 64 rows (tiles, four panels), a warp each. 256 columns are fetched (cp.async) while those before are
///              multiplied; a lane takes its codes out of shared memory once for all rows
///   order      ascending columns in four sums, a quarter each, then these in order, whatever the tile: a row's result
///              does not depend on its neighbours
///   traffic    packed weights once for 8, 16 or 64 rows (0.23 bytes each in IQ1_S to 1.06 in Q8_0), activations once
///              for 16 or 64 outputs
///   limit      to 16 rows memory: R1's experts of a layer on one of 8 GPUs as Q4_K 0.81 GB, 170 us on H200. With 64
///              rows scales: some 20 to 30 instructions of a warp for 16 x 8 x 32 products, which take the tensor cores
///              4 to 8 cycles, so about a fifth of their rate
template <class Layout, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    linear_packed_mma_kernel(const __grid_constant__ LinearCall call, const __grid_constant__ Layout f, ByteRows bytes,
                             std::int64_t x_cols) {
  multiply<ByteProduct<Layout>, kRows>(call, f, {reinterpret_cast<const std::byte*>(bytes.value), bytes.scale, x_cols});
}

template <class Layout>
void launch_layout(const LinearCall& call, const PackedLayout& layout, const ByteRows& x, std::int64_t x_cols,
                   cudaStream_t stream) {
  const Layout f{layout};
  const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
    using S = Shares<ByteProduct<Layout>, kRows>;
    launch_with_shared("linear_packed_mma", linear_packed_mma_kernel<Layout, kRows>, S::grid(call), kThreads,
                       S::bytes(f) + static_cast<std::size_t>(FragmentReader<Layout>::room(f)), stream, call, f, x,
                       x_cols);
  };
  with_tile_rows(call, run);
}

/// By the first of these that the layout has; false where there is none.
template <LayoutTraits... kTraits>
bool launch_known(const LinearCall& call, const PackedLayout& f, const ByteRows& x, std::int64_t x_cols,
                  cudaStream_t stream) {
  if (f.zeros || (f.coding == Coding::planes && f.bits == 8 && f.offset != 128)) return false;
  const bool points = f.coding == Coding::points;
  const LayoutTraits traits{f.bits,
                            f.scales,
                            f.group,
                            f.minima,
                            f.has_table,
                            f.coding,
                            points ? f.point_columns : 8,
                            points ? f.extra_bits : 0,
                            f.minima_of_scale};
  return ((traits == kTraits && (launch_layout<KnownLayout<kTraits>>(call, f, x, x_cols, stream), true)) || ...);
}

constexpr LayoutTraits kIq1S{2, Scales::nibbles, 32, true, false, Coding::trits, 8, 0, true},
    kIq1M{3, Scales::nibbles, 16, false, true, Coding::trits}, kTq1{2, Scales::half, 32, false, false, Coding::trits};
constexpr LayoutTraits of_points(int bits, int group, int columns, int extra_bits) {
  return {bits, Scales::nibbles, group, false, true, Coding::points, columns, extra_bits};
}

}  // namespace

void linear_packed_mma(const LinearCall& call, const PackedLayout& f, const ByteRows& x, std::int64_t x_cols,
                       cudaStream_t stream) {
  // Those that weights of whole models come in: with their layout known, a step takes a third of the instructions.
  const bool known =
      launch_known<LayoutTraits{8, Scales::half},                                           // Q8_0
                   LayoutTraits{8, Scales::single},                                         // INT8
                   LayoutTraits{4, Scales::half},                                           // Q4_0, INT4
                   LayoutTraits{4, Scales::super, 32, true},                                // Q4_K
                   LayoutTraits{5, Scales::super, 32, true},                                // Q5_K
                   LayoutTraits{6, Scales::super, 16},                                      // Q6_K
                   LayoutTraits{3, Scales::super, 16},                                      // Q3_K
                   LayoutTraits{2, Scales::nibbles, 16, true},                              // Q2_K
                   LayoutTraits{4, Scales::super, 32, false, true},                         // IQ4_XS
                   LayoutTraits{4, Scales::half, 32, false, true},                          // IQ4_NL
                   of_points(3, 32, 8, 0), of_points(3, 16, 8, 1), of_points(3, 16, 8, 2),  // IQ2_XXS, IQ2_XS, IQ2_S
                   of_points(4, 32, 4, 0), of_points(4, 32, 4, 1),                          // IQ3_XXS, IQ3_S
                   kIq1S, kIq1M, kTq1>(call, f, x, x_cols, stream);
  if (!known) launch_layout<PlanesLayout>(call, f, x, x_cols, stream);  // all other formats there are, which tests try
}

}  // namespace shoal::cuda
