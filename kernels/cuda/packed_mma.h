#pragma once
#include "kernels/cuda/mma.h"
#include "kernels/cuda/packed_row.h"
#include "kernels/cuda/tile.h"

// Products of packed weights on the tensor cores: how a block fetches panels and activations, shares them between its
// warps and adds up. What a record's products are is a Product's: of activations in bytes (linear_packed_mma.cu) or in
// BF16 (linear_int4_mma.cu). It has
//   kChunk               columns that are fetched at once, in whole records or a part of one
//   kElement             bytes of an activation
//   kScaled              whether 32 of them have a scale
//   kLooksUp             whether its constructor writes into shared memory what add_record() looks up
//   panels_each(rows)    how many panels a warp takes, where warps share columns
//   output_of(g, half)   which output of a panel is row g + 8 half of the tensor cores' fragments
//   add_record()         adds the products of a record, or of a chunk's part of it, with kBlocks times eight rows, as
//                        mma.h has them
namespace shoal::cuda::packed_mma {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kMostColumns = 256;  // of a record
constexpr int kStages = 2;
constexpr int kCopy = 16;  // bytes
/// From one row of a chunk to the next, so that fragments hit all banks: bytes of activations, and scales.
constexpr int row_bytes(int chunk, int element) { return (chunk + 16) * element; }
constexpr int scale_row(int chunk) { return chunk / kStepCols + 4; }

/// Where a block's dynamic shared memory has a stage of what is fetched: activations [kRows][row_bytes()], their scales
/// [kRows][scale_row()] if they have some, and a chunk of packed records.
template <class Product, int kRows>
struct Stage {
  std::byte *x, *weights;
  float* scale;
  static constexpr int kXRow = row_bytes(Product::kChunk, Product::kElement), kScaleRow = scale_row(Product::kChunk);
  static constexpr int kActivationBytes = kRows * (kXRow + (Product::kScaled ? kScaleRow * 4 : 0));
  __device__ __forceinline__ static Stage at(std::byte* activations, std::byte* weights) {
    return {activations, weights, reinterpret_cast<float*>(activations + kRows * kXRow)};
  }
};

/// The records of a chunk: a part of one comes with its head, as if it were a narrower one.
template <int kChunk>
struct Pieces {
  bool are_parts;
  int columns, bytes;  // of each
  constexpr explicit Pieces(const PackedLayout& f)
      : are_parts(kChunk < kMostColumns && f.record > kChunk),
        columns(are_parts ? kChunk : f.record),
        bytes(are_parts ? f.head_bytes + kChunk / kStepCols * f.step_bytes : f.record_bytes) {}
  constexpr int of_chunk() const { return kChunk / columns * bytes; }
};

/// How the four warps of a block share its work. Few rows: all take the same panels, each a quarter of their columns.
/// Many: a panel each, of the same rows.
template <class Product, int kRows>
struct Shares {
  static constexpr bool kColumns = kRows <= kMmaFewRows;
  static constexpr int kPanelsEach = kColumns ? Product::panels_each(kRows) : 1;  // of a warp
  static constexpr int kPanels = kColumns ? kPanelsEach : kWarps;                 // of a block
  static constexpr int kActivationSets = kColumns ? kWarps : 1;                   // that are fetched
  static dim3 grid(const LinearCall& call) {
    return {static_cast<unsigned>(call.n_tiles),
            static_cast<unsigned>(ceil_div<std::int64_t>(call.most_outputs, kPanels * kPanelRows))};
  }
  /// Of shared memory, without what the Product wants.
  static std::size_t bytes(const PackedLayout& f) {
    return static_cast<std::size_t>(kStages) *
           static_cast<std::size_t>(kActivationSets * Stage<Product, kRows>::kActivationBytes +
                                    kWarps * kPanelsEach * Pieces<Product::kChunk>(f).of_chunk());
  }
};

/// use(std::integral_constant<int, the call's tile_rows>).
template <class Use>
void with_tile_rows(const LinearCall& call, const Use& use) {
  if (call.tile_rows == kTileRows) return use(std::integral_constant<int, kTileRows>());
  if (call.tile_rows == kMmaFewRows) return use(std::integral_constant<int, kMmaFewRows>());
  use(std::integral_constant<int, kMmaManyRows>());
}

/// Activations in rows `stride` elements apart; `scale` for 32 of them, where the Product has scales.
struct ActivationRows {
  const std::byte* value;
  const float* scale;
  std::int64_t stride;
};

/// A kernel of kThreads threads: the products of the call's tiles. The sums of a row are four, of a quarter of the
/// columns each in ascending order, and then added in order, whichever way warps share the work.
template <class Product, int kRows, class Layout>
__device__ __forceinline__ void multiply(const LinearCall& call, const Layout& f, const ActivationRows& rows) {
  let_next_kernel_begin();
  using S = Shares<Product, kRows>;
  using Stage = packed_mma::Stage<Product, kRows>;
  constexpr int kBlocks = kRows / 8, kPanelsEach = S::kPanelsEach, kElement = Product::kElement;
  constexpr int kChunk = Product::kChunk, kChunkSteps = kChunk / kStepCols, kScaleRow = Stage::kScaleRow;
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
  const int panels_there =  // of this warp's, none if it is not above 0
      min(kPanelsEach, static_cast<int>(ceil_div<std::int64_t>(w.rows, kPanelRows) - panel));
  const auto cols = static_cast<int>(w.cols);
  const Pieces<kChunk> pieces(f);
  const int chunk_bytes = pieces.of_chunk();
  const int chunks = ceil_div(cols, kChunk);
  const std::int64_t panel_bytes = std::int64_t{cols / f.record} * f.record_bytes;
  const std::byte* packed = w.data + (panels_there > 0 ? panel : 0) * panel_bytes;

  auto* memory = reinterpret_cast<std::byte*>(dynamic_shared());
  const auto stage_of = [&](int chunk) {
    const int i = chunk % kStages;
    std::byte* activations = memory + (i * S::kActivationSets + (S::kColumns ? warp : 0)) * Stage::kActivationBytes;
    std::byte* weights = memory + kStages * S::kActivationSets * Stage::kActivationBytes;
    return Stage::at(activations, weights + (i * kWarps + warp) * kPanelsEach * chunk_bytes);
  };
  const auto fetch_weights = [&](int chunk) {
    const Stage to = stage_of(chunk);
    const int n = min(kChunk, cols - chunk * kChunk) / pieces.columns * pieces.bytes;
    const int skipped = pieces.are_parts ? chunk * kChunk % f.record / kStepCols * f.step_bytes : 0;  // behind the head
    const std::int64_t at =
        pieces.are_parts ? std::int64_t{chunk * kChunk / f.record} * f.record_bytes : std::int64_t{chunk} * chunk_bytes;
#pragma unroll
    for (int p = 0; p < kPanelsEach; ++p) {
      if (p >= panels_there) break;
      const std::byte* from = packed + p * panel_bytes + at;
      for (int i = lane * kCopy; i < n; i += kWarp * kCopy)
        copy_async_16(to.weights + p * chunk_bytes + i, from + i + (i < f.head_bytes ? 0 : skipped), kCopy);
    }
  };
  // A thread copies 16 bytes of every so manyth row, and the scale of one step. What lies in the other rows of a tile
  // that is not full does not matter.
  constexpr int kThreadsEach = S::kColumns ? kWarp : kThreads, kPieces = kChunk * kElement / kCopy;
  constexpr int kRowsApart = kThreadsEach / kPieces, kScaleRowsApart = kThreadsEach / kChunkSteps;
  const int me = S::kColumns ? lane : thread, place = me % kPieces * kCopy, step_of_me = me % kChunkSteps;
  const std::byte* values[kRows / kRowsApart];
  const float* scales[kRows / kScaleRowsApart];
  const auto column_of = [&](int row) {
    return source_row(call, tile.first + min(row, tile.count - 1)) * rows.stride + tile.group * call.x_step;
  };
#pragma unroll
  for (int i = 0; i < kRows / kRowsApart; ++i)
    values[i] = rows.value + column_of(me / kPieces + i * kRowsApart) * kElement + place;
  if constexpr (Product::kScaled) {
#pragma unroll
    for (int i = 0; i < kRows / kScaleRowsApart; ++i)
      scales[i] = rows.scale + column_of(me / kChunkSteps + i * kScaleRowsApart) / kStepCols + step_of_me;
  }
  const auto fetch_activations = [&](int chunk) {
    const Stage to = stage_of(chunk);
    const int n = min(kChunk, cols - chunk * kChunk);
    if (place < n * kElement) {
#pragma unroll
      for (int i = 0; i < kRows / kRowsApart; ++i) {
        const int row = me / kPieces + i * kRowsApart;
        if (row < tile.count)
          copy_async_16(to.x + row * Stage::kXRow + place, values[i] + chunk * kChunk * kElement, kCopy);
      }
    }
    if constexpr (Product::kScaled) {
      if (step_of_me * kStepCols >= n) return;
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
      memory + kStages * (S::kActivationSets * Stage::kActivationBytes + kWarps * kPanelsEach * chunk_bytes);
  const Product product(f, w, behind_stages, thread);
  const int begin = S::kColumns ? chunks * warp / kWarps : 0, end = S::kColumns ? chunks * (warp + 1) / kWarps : chunks;
  if (begin < end) fetch_weights(begin);
  wait_for_previous_kernels();
  if (begin < end) fetch_activations(begin);
  commit_copies();

  float sum[kPanelsEach][kBlocks][4] = {}, total[kBlocks][4] = {};
  int quarter = 0;
  if constexpr (Product::kLooksUp) __syncthreads();
#pragma unroll 1
  for (int chunk = begin; chunk < end; ++chunk) {
    if (chunk + 1 < end) {
      fetch_weights(chunk + 1);
      fetch_activations(chunk + 1);
    }
    commit_copies();
    wait_copies<kStages - 1>();
    meet();
    const Stage from = stage_of(chunk);
    const int n = min(kChunk, cols - chunk * kChunk);
#pragma unroll
    for (int p = 0; p < kPanelsEach; ++p) {
      if (p >= panels_there) break;
      const std::byte *record = from.weights + p * chunk_bytes, *x = from.x;
      const float* x_scale = from.scale;
#pragma unroll 1
      for (int col = 0; col < n; col += pieces.columns) {
        product.add_record(record, x, x_scale, lane, sum[p]);
        record += pieces.bytes;
        x += pieces.columns * kElement;
        x_scale += pieces.columns / kStepCols;
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
            total[b][i] += sum[0][b][i];
            sum[0][b][i] = 0;
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
    auto* sums = reinterpret_cast<float*>(memory);  // [warp][panel][row][16 outputs], where stages were
    constexpr int kSums = kPanelsEach * kRows * kPanelRows;
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kPanelsEach; ++p)
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[warp * kSums + (p * kRows + b * 8 + 2 * t + i % 2) * kPanelRows + Product::output_of(g, i / 2)] =
              sum[p][b][i];
    __syncthreads();
    for (int i = thread; i < kSums; i += kThreads) {
      float all = 0;
#pragma unroll
      for (int q = 0; q < kWarps; ++q) all += sums[q * kSums + i];
      const int row = i / kPanelRows;
      store(row % kRows, (panel + row / kRows) * kPanelRows + i % kPanelRows, all);
    }
  } else {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        store(b * 8 + 2 * t + i % 2, panel * kPanelRows + Product::output_of(g, i / 2), total[b][i]);
  }
}

}  // namespace shoal::cuda::packed_mma
