#include "kernels/cpu/linear.h"

#include <algorithm>

namespace shoal::cpu {

void Linear::run(Team& team, Rows<const float> x, std::int64_t x_step, std::span<const Matrix> w,
                 std::span<const float> bias, Rows<float> out, std::int64_t out_step) {
  if (x.rows == 0 || w.empty()) return;
  rows_.resize(w.size());
  products_.resize(w.size());
  Layout layout;
  for (std::size_t h = 0; h < w.size(); ++h) {
    rows_[h].rows.resize(static_cast<std::size_t>(x.rows));
    for (std::int64_t t = 0; t < x.rows; ++t) {
      rows_[h].rows[static_cast<std::size_t>(t)] = x[t] + static_cast<std::int64_t>(h) * x_step;
    }
    rows_[h].plan(team, w[h], layout);
    products_[h] = product_of(team, w[h], rows_[h]);
  }
  std::byte* storage = storage_.bytes(layout.size());
  pack(team, rows_, storage);

  cut(team.pool.size(), products_, pieces_);
  team.run(pieces_.size(), 1, operations_of(products_), [&](std::size_t begin, std::size_t end, int thread) {
    for (std::size_t i = begin; i < end; ++i) {
      const Piece& piece = pieces_[i];
      const Product& product = products_[piece.product];
      std::byte* scratch = team.scratch[static_cast<std::size_t>(thread)].bytes(scratch_bytes(product, piece));
      float* results = multiply(product, piece, storage, scratch);
      const std::int64_t row = piece.first_panel * Matrix::kPanel;
      const std::int64_t n = std::min(piece.panels * Matrix::kPanel, product.w->rows() - row);
      for_each_tile(product, piece, results, [&](const PackedRows::Tile& tile, const float* of_tile) {
        for (int t = 0; t < tile.tokens; ++t) {
          float* to = out[tile.first + t] + static_cast<std::int64_t>(piece.product) * out_step + row;
          team.kernels.copy_outputs(of_tile, tile.width, t, n, bias.empty() ? nullptr : bias.data() + row, to);
        }
      });
    }
  });
}

}  // namespace shoal::cpu
