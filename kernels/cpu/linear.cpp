#include "kernels/cpu/linear.h"

#include <algorithm>

namespace shoal::cpu {

void Linear::run(Team& team, std::span<const LinearJob> jobs) {
  if (jobs.empty() || jobs[0].x.rows == 0) return;
  rows_.resize(jobs.size());
  products_.resize(jobs.size());
  Layout layout;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    const LinearJob& job = jobs[j];
    // Rows that the job before has packed alike are not packed again.
    const LinearJob* before = j > 0 ? &jobs[j - 1] : nullptr;
    const bool again = before && before->x.data == job.x.data && before->x.stride == job.x.stride &&
                       packed_alike(team, *before->w, *job.w);
    rows_[j].rows.resize(again ? 0 : static_cast<std::size_t>(job.x.rows));
    for (std::size_t t = 0; t < rows_[j].rows.size(); ++t) rows_[j].rows[t] = job.x[static_cast<std::int64_t>(t)];
    rows_[j].plan(team, *job.w, layout);
    products_[j] = product_of(team, *job.w, again ? *products_[j - 1].x : rows_[j]);
  }
  std::byte* storage = storage_.bytes(layout.size());
  pack(team, rows_, storage);

  cut(team.pool.size(), products_, pieces_);
  team.run(pieces_.size(), 1, operations_of(products_), [&](std::size_t begin, std::size_t end, int thread) {
    for (std::size_t i = begin; i < end; ++i) {
      const Piece& piece = pieces_[i];
      const Product& product = products_[piece.product];
      const LinearJob& job = jobs[piece.product];
      std::byte* scratch = team.scratch[static_cast<std::size_t>(thread)].bytes(scratch_bytes(product, piece));
      const std::byte* after = next_panel(team, products_, pieces_, i);
      prefetch(after);
      float* results = multiply(product, piece, storage, scratch, after);
      const std::int64_t row = piece.first_panel * Matrix::kPanel;
      const std::int64_t n = std::min(piece.panels * Matrix::kPanel, product.w->rows() - row);
      for_each_tile(product, piece, results, [&](const PackedRows::Tile& tile, const float* of_tile) {
        for (int t = 0; t < tile.tokens; ++t) {
          team.kernels.copy_outputs(of_tile, tile.width, t, n, job.bias.empty() ? nullptr : job.bias.data() + row,
                                    job.out[tile.first + t] + row);
        }
      });
    }
  });
}

}  // namespace shoal::cpu
