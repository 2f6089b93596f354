#include "kernels/cuda/mma.h"
#include "kernels/cuda/packed_fragment.h"
#include "kernels/cuda/tile.h"

namespace shoal::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kChunk = 256, kChunkSteps = kChunk / kStepCols;  // columns that are fetched at once, in whole records
constexpr int kStages = 2;
constexpr int kCopy = 16;                   // bytes
constexpr int kXRow = kChunk + 16;          // bytes between rows of activations, so that fragments hit all banks
constexpr int kScaleRow = kChunkSteps + 4;  // floats, likewise

/// Where a block's dynamic shared memory has a stage of what is fetched: activations [kRows][kXRow], their scales
/// [kRows][kScaleRow], and a chunk of packed records.
template <int kRows>
struct Stage {
  std::byte *x, *weights;
  float* scale;
  static constexpr int kActivationBytes = kRows * (kXRow + kScaleRow * 4);
  __device__ __forceinline__ static Stage at(std::byte* activations, std::byte* weights) {
    return {activations, weights, reinterpret_cast<float*>(activations + kRows * kXRow)};
  }
};

/// How the four warps of a block share its work. Few rows: one panel, whose columns they take in quarters. Many: a
/// panel each, of the same rows.
template <int kRows>
struct Shares {
  static constexpr bool kColumns = kRows <= kMmaFewRows;
  static constexpr int kPanels = kColumns ? 1 : kWarps;          // of a block
  static constexpr int kActivationSets = kColumns ? kWarps : 1;  // that are fetched
  static std::size_t bytes(int chunk_bytes) {
    return static_cast<std::size_t>(kStages) *
           static_cast<std::size_t>(kActivationSets * Stage<kRows>::kActivationBytes + kWarps * chunk_bytes);
  }
};

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
  let_next_kernel_begin();
  using S = Shares<kRows>;
  constexpr int kGroup = Layout::group, kGroups = kStepCols / kGroup, kBlocks = kRows / 8;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4;
  if (call.tiles_made) wait_for_previous_kernels();
  const Tile tile = tile_of_block(call);
  const Weights& w = call.weights[tile.group];
  if (tile.count == 0) return;
  const std::int64_t panel = std::int64_t{blockIdx.y} * S::kPanels + (S::kColumns ? 0 : warp);
  if (std::int64_t{blockIdx.y} * S::kPanels * kPanelRows >= w.rows) {  // the whole block
    wait_for_previous_kernels();
    return;
  }
  const bool there = panel * kPanelRows < w.rows;
  const auto cols = static_cast<int>(w.cols);
  const int chunk_bytes = kChunk / f.record * f.record_bytes;
  const int chunks = ceil_div(cols, kChunk);
  const std::byte* packed = w.data + (there ? panel : 0) * (cols / f.record) * f.record_bytes;

  auto* memory = reinterpret_cast<std::byte*>(dynamic_shared());
  const auto stage_of = [&](int chunk) {
    const int i = chunk % kStages;
    std::byte* activations =
        memory + (i * S::kActivationSets + (S::kColumns ? warp : 0)) * Stage<kRows>::kActivationBytes;
    std::byte* weights = memory + kStages * S::kActivationSets * Stage<kRows>::kActivationBytes;
    return Stage<kRows>::at(activations, weights + (i * kWarps + warp) * chunk_bytes);
  };
  const auto fetch_weights = [&](int chunk) {
    const Stage<kRows> to = stage_of(chunk);
    const int n = min(kChunk, cols - chunk * kChunk) / f.record * f.record_bytes;
    for (int i = lane * kCopy; i < n; i += kWarp * kCopy)
      copy_async_16(to.weights + i, packed + std::int64_t{chunk} * chunk_bytes + i, kCopy);
  };
  // A thread copies 16 bytes of every so manyth row, and the scale of one step. What lies in the other rows of a tile
  // that is not full does not matter.
  constexpr int kThreadsEach = S::kColumns ? kWarp : kThreads, kPieces = kChunk / kCopy;
  constexpr int kRowsApart = kThreadsEach / kPieces, kScaleRowsApart = kThreadsEach / kChunkSteps;
  const int me = S::kColumns ? lane : thread, place = me % kPieces * kCopy, step_of_me = me % kChunkSteps;
  const std::int8_t* values[kRows / kRowsApart];
  const float* scales[kRows / kScaleRowsApart];
  const auto column_of = [&](int row) {
    return source_row(call, tile.first + min(row, tile.count - 1)) * x_cols + tile.group * call.x_step;
  };
#pragma unroll
  for (int i = 0; i < kRows / kRowsApart; ++i)
    values[i] = bytes.value + column_of(me / kPieces + i * kRowsApart) + place;
#pragma unroll
  for (int i = 0; i < kRows / kScaleRowsApart; ++i)
    scales[i] = bytes.scale + column_of(me / kChunkSteps + i * kScaleRowsApart) / kStepCols + step_of_me;
  const auto fetch_activations = [&](int chunk) {
    const Stage<kRows> to = stage_of(chunk);
    const int n = min(kChunk, cols - chunk * kChunk);
    if (place < n) {
#pragma unroll
      for (int i = 0; i < kRows / kRowsApart; ++i) {
        const int row = me / kPieces + i * kRowsApart;
        if (row < tile.count) copy_async_16(to.x + row * kXRow + place, values[i] + chunk * kChunk, kCopy);
      }
    }
    if (step_of_me * kStepCols < n) {
#pragma unroll
      for (int i = 0; i < kRows / kScaleRowsApart; ++i) {
        const int row = me / kChunkSteps + i * kScaleRowsApart;
        if (row < tile.count) copy_async_4(to.scale + row * kScaleRow + step_of_me, scales[i] + chunk * kChunkSteps);
      }
    }
  };
  const auto meet = [] {
    if constexpr (S::kColumns)
      __syncwarp();
    else
      __syncthreads();
  };

  std::byte* behind_stages =
      memory + kStages * (S::kActivationSets * Stage<kRows>::kActivationBytes + kWarps * chunk_bytes);
  const FragmentReader<Layout> codes(f, w.packed.points, behind_stages, thread, kThreads);
  const int begin = S::kColumns ? chunks * warp / kWarps : 0, end = S::kColumns ? chunks * (warp + 1) / kWarps : chunks;
  if (begin < end && there) fetch_weights(begin);
  wait_for_previous_kernels();
  if (begin < end) fetch_activations(begin);
  commit_copies();

  float sum[kBlocks][4] = {}, total[kBlocks][4] = {};
  int quarter = 0;
  if constexpr (Layout::coding != Coding::planes) __syncthreads();  // what codes looks up
#pragma unroll 1
  for (int chunk = begin; chunk < end; ++chunk) {
    if (chunk + 1 < end) {
      if (there) fetch_weights(chunk + 1);
      fetch_activations(chunk + 1);
    }
    commit_copies();
    wait_copies<kStages - 1>();
    meet();
    if (there) {
      const Stage<kRows> from = stage_of(chunk);
      const int n = min(kChunk, cols - chunk * kChunk);
      const std::byte *record = from.weights, *x = from.x;
      const float* x_scale = from.scale;
#pragma unroll 1
      for (int col = 0; col < n; col += f.record, record += f.record_bytes) {
        RowHead head[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          head[h] = head_of(f, record, g + 8 * h);
          head[h].offset -= codes.shift();
        }
#pragma unroll 1
        for (int step = 0; step < f.record / kStepCols; ++step, x += kStepCols, ++x_scale) {
          const std::byte* at = record + f.head_bytes + step * f.step_bytes;
          GroupScale scale[2][kGroups];
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < kGroups; ++i) scale[h][i] = scale_of_group(f, head[h], record, at, step, i, g + 8 * h);
          unsigned a[4];
          codes.read(record, step, lane, a);
#pragma unroll
          for (int b = 0; b < kBlocks; ++b)
            add_step<kGroup>(a, scale, codes.rest(), x + b * 8 * kXRow, x_scale + b * 8 * kScaleRow, lane, sum[b]);
        }
      }
    }
    meet();  // before the stage is filled again
    if constexpr (!S::kColumns) {
      while (quarter < kWarps && chunks * (quarter + 1) / kWarps <= chunk + 1) {  // of few chunks some are empty
        ++quarter;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            total[b][i] += sum[b][i];
            sum[b][i] = 0;
          }
      }
    }
  }

  const auto store = [&](int row, std::int64_t output, float value) {
    if (row >= tile.count || output >= w.rows) return;
    call.out[(tile.first + row) * call.out_stride + tile.group * call.out_step + output] =
        value + (call.bias == nullptr ? 0.0f : call.bias[output]);
  };
  if constexpr (S::kColumns) {
    auto* sums = reinterpret_cast<float*>(memory);  // [warp][row][16 outputs], where stages were
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[(warp * kRows + b * 8 + 2 * t + i % 2) * kPanelRows + g + 8 * (i / 2)] = sum[b][i];
    __syncthreads();
    for (int i = thread; i < kRows * kPanelRows; i += kThreads) {
      float all = 0;
#pragma unroll
      for (int q = 0; q < kWarps; ++q) all += sums[q * kRows * kPanelRows + i];
      store(i / kPanelRows, panel * kPanelRows + i % kPanelRows, all);
    }
  } else {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) store(b * 8 + 2 * t + i % 2, panel * kPanelRows + g + 8 * (i / 2), total[b][i]);
  }
}

template <class Layout>
void launch_layout(const LinearCall& call, const PackedLayout& layout, const ByteRows& x, std::int64_t x_cols,
                   cudaStream_t stream) {
  const Layout f{layout};
  const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
    using S = Shares<kRows>;
    const dim3 grid(static_cast<unsigned>(call.n_tiles),
                    static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, S::kPanels * kPanelRows)));
    launch_with_shared(
        "linear_packed_mma", linear_packed_mma_kernel<Layout, kRows>, grid, kThreads,
        S::bytes(kChunk / f.record * f.record_bytes) + static_cast<std::size_t>(FragmentReader<Layout>::room(f)),
        stream, call, f, x, x_cols);
  };
  if (call.tile_rows == kTileRows) return run(std::integral_constant<int, kTileRows>());
  if (call.tile_rows == kMmaFewRows) return run(std::integral_constant<int, kMmaFewRows>());
  run(std::integral_constant<int, kMmaManyRows>());
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
