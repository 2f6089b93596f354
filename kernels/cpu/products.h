#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/scratch.h"
#include "kernels/matrix.h"
#include "kernels/thread_pool.h"

/// Products of groups of matrices, cut into pieces for a team of threads. Linear layers, one product per head and
/// experts are all such groups.
namespace shoal::cpu {

/// What every operation of a backend works with.
struct Team {
  const KernelTable& kernels;
  Compute compute;
  ThreadPool& pool;
  std::vector<Scratch> scratch;  // one for each thread

  /// Work that takes about as long as waking the other threads: less is done by the caller alone.
  static constexpr double kWorthSharing = 30000;

  /// parallel_for over the pool. `operations`: a rough count of multiplications, or of elements moved.
  template <class Body>
  void run(std::size_t count, std::size_t grain, double operations, const Body& body) {
    if (operations < kWorthSharing) grain = count;
    pool.parallel_for(count, grain, std::cref(body));
  }
};

/// Some rows of activations packed for one kind of product.
struct PackedRows {
  struct Tile {
    std::int64_t first, tokens;
    int width;
    std::int64_t offset;  // bytes, in the storage planned for
  };
  const Gemm* gemm = nullptr;      // whose packing
  const Matrix* matrix = nullptr;  // whose order of columns
  std::int64_t cols = 0;
  std::vector<const float*> rows;
  std::vector<Tile> tiles;  // widest first

  /// Divides `rows` into tiles for products with `w` and adds the room they take to `layout`. The same tiles suit
  /// `partner`, where results for both are put together tile by tile.
  void plan(const Team& team, const Matrix& w, const Matrix& partner, Layout& layout);
  void plan(const Team& team, const Matrix& w, Layout& layout) { plan(team, w, w, layout); }
};

/// Whether the same packed rows serve both matrices.
bool packed_alike(const Team& team, const Matrix& a, const Matrix& b);

/// Packs the planned tiles of all sets into storage of layout.size() bytes.
void pack(Team& team, std::span<const PackedRows> sets, std::byte* storage);

/// The rows of `x` times `w`.
struct Product {
  const Matrix* w;
  const PackedRows* x;
  const Gemm* gemm;
};
Product product_of(const Team& team, const Matrix& w, const PackedRows& x);

/// What one thread does of a product in one go: some panels by some tiles.
struct Piece {
  std::size_t product;
  std::int64_t first_panel, panels;
  std::size_t first_tile, tiles;
};

/// Cuts products into pieces: enough for the threads to finish together, but none so small that weights are read in
/// shreds.
void cut(int threads, std::span<const Product> products, std::vector<Piece>& pieces);

/// Some panels of a matrix.
struct PanelRange {
  std::int64_t first, panels;
};
/// Part i of n nearly equal ones, in whole groups of four panels (which share loads of activations) where there are so
/// many.
PanelRange part_of_panels(std::int64_t panels, std::int64_t i, std::int64_t n);

/// Into how many parts of `panels` to cut a loop in which a part is so many outputs of all products, so that threads
/// end together as nearly as whole groups allow.
std::int64_t parts_of_outputs(int threads, std::int64_t panels, std::span<const Product> products);

/// Asks the memory for the first weights from `panel` on, while others are multiplied.
void prefetch(const std::byte* panel);

/// The same for packed rows, which other threads may have packed.
void prefetch_rows(const PackedRows& x, const std::byte* storage);

/// Where the weights begin of the piece that this thread will most likely take when it is done with piece `i`; null
/// where there is none.
const std::byte* next_panel(const Team& team, std::span<const Product> products, std::span<const Piece> pieces,
                            std::size_t i);

/// A rough count of the multiplications of all products, for Team::run.
double operations_of(std::span<const Product> products);

/// Bytes of scratch for a piece; results lie at its beginning.
std::int64_t scratch_bytes(const Product& product, const Piece& piece);

/// Computes a piece: results [panels][width][16] of its tiles, one behind the other, at the beginning of `scratch`.
/// `after`: as in Weights.
float* multiply(const Product& product, const Piece& piece, const std::byte* storage, std::byte* scratch,
                const std::byte* after);

/// Calls body(tile, results of the tile) for each tile of a piece.
template <class Body>
void for_each_tile(const Product& product, const Piece& piece, float* results, const Body& body) {
  for (std::size_t i = piece.first_tile; i < piece.first_tile + piece.tiles; ++i) {
    const PackedRows::Tile& tile = product.x->tiles[i];
    body(tile, results);
    results += piece.panels * tile.width * Matrix::kPanel;
  }
}

}  // namespace shoal::cpu
