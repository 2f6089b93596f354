#include "kernels/cpu/experts.h"

#include <algorithm>

#include "base/error.h"

namespace shoal::cpu {
namespace {

/// Tiles of one expert whose results are held at a time.
constexpr std::size_t kTilesAtOnce = 16;

}  // namespace

void Experts::run(Team& team, const ExpertBatch& batch, std::span<const FeedForward> experts) {
  if (batch.rows.empty()) return;
  sort_by_expert(batch, experts);
  gate_and_up(team, batch);
  down(team, batch, experts[0].down);
}

void Experts::sort_by_expert(const ExpertBatch& batch, std::span<const FeedForward> experts) {
  next_.assign(experts.size() + 1, 0);
  for (const std::int32_t e : batch.expert) ++next_[static_cast<std::size_t>(e) + 1];
  for (std::size_t e = 0; e < experts.size(); ++e) next_[e + 1] += next_[e];

  active_.clear();
  std::int64_t hidden = 0;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const std::size_t count = next_[e + 1] - next_[e];
    if (count == 0) continue;
    active_.push_back({&experts[e], next_[e], count, hidden});
    hidden += static_cast<std::int64_t>(count) * experts[e].gate.rows();
  }

  pairs_.resize(batch.expert.size());
  for (std::size_t r = 0; r < batch.rows.size(); ++r) {
    for (std::int32_t i = batch.first[r]; i < batch.first[r + 1]; ++i) {
      const auto e = static_cast<std::size_t>(batch.expert[static_cast<std::size_t>(i)]);
      pairs_[next_[e]++] = {static_cast<std::int32_t>(r), batch.weight[static_cast<std::size_t>(i)]};
    }
  }
}

void Experts::gate_and_up(Team& team, const ExpertBatch& batch) {
  const std::size_t n = active_.size();
  inputs_.resize(2 * n);
  gates_.resize(n);
  ups_.resize(n);
  Layout layout;
  std::int64_t hidden = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Active& a = active_[i];
    const Matrix &gate = a.expert->gate, &up = a.expert->up;
    if (gate.rows() != up.rows() || gate.cols() != up.cols()) {
      fail("an expert's gate is {} x {} but its up projection {} x {}", gate.rows(), gate.cols(), up.rows(), up.cols());
    }
    // Where the two are of kinds whose activations are packed differently, the rows are packed twice.
    PackedRows &x = inputs_[2 * i], &other = inputs_[2 * i + 1];
    x.rows.resize(a.count);
    for (std::size_t j = 0; j < a.count; ++j) x.rows[j] = batch.rows[static_cast<std::size_t>(pairs_[a.first + j].row)];
    x.plan(team, gate, up, layout);
    const bool alike = packed_alike(team, gate, up);
    other.rows.clear();
    if (!alike) other.rows = x.rows;
    other.plan(team, up, gate, layout);
    gates_[i] = product_of(team, gate, x);
    ups_[i] = product_of(team, up, alike ? x : other);
    hidden = a.hidden + static_cast<std::int64_t>(a.count) * gate.rows();
  }
  std::byte* storage = inputs_storage_.bytes(layout.size());
  pack(team, inputs_, storage);
  float* const hidden_rows = hidden_.floats(hidden);

  cut(team.pool.size(), gates_, pieces_);
  team.run(pieces_.size(), 1, 2 * operations_of(gates_), [&](std::size_t begin, std::size_t end, int thread) {
    for (std::size_t i = begin; i < end; ++i) {
      const Piece& piece = pieces_[i];
      const Product &gate = gates_[piece.product], &up = ups_[piece.product];
      const Active& a = active_[piece.product];
      Layout rooms;
      const std::int64_t gate_room = rooms.add(scratch_bytes(gate, piece));
      const std::int64_t up_room = rooms.add(scratch_bytes(up, piece));
      std::byte* scratch = team.scratch[static_cast<std::size_t>(thread)].bytes(rooms.size());
      const std::byte *of_up = up.w->panel(piece.first_panel), *after = next_panel(team, gates_, pieces_, i);
      prefetch(of_up);
      float* g = multiply(gate, piece, storage, scratch + gate_room, of_up);
      prefetch(after);
      const float* u = multiply(up, piece, storage, scratch + up_room, after);
      const std::int64_t row = piece.first_panel * Matrix::kPanel, width = gate.w->rows();
      const std::int64_t n_rows = std::min(piece.panels * Matrix::kPanel, width - row);
      for_each_tile(gate, piece, g, [&](const PackedRows::Tile& tile, float* results) {
        const std::int64_t count = piece.panels * tile.width * Matrix::kPanel;
        team.kernels.silu_mul(results, u + (results - g), results, count);
        for (int t = 0; t < tile.tokens; ++t) {
          float* to = hidden_rows + a.hidden + (tile.first + t) * width + row;
          team.kernels.copy_outputs(results, tile.width, t, n_rows, nullptr, to);
        }
      });
    }
  });
}

void Experts::down(Team& team, const ExpertBatch& batch, const Matrix& any) {
  const std::size_t n = active_.size();
  hidden_rows_.resize(n);
  downs_.resize(n);
  Layout layout;
  const float* hidden = hidden_.floats(0);
  for (std::size_t i = 0; i < n; ++i) {
    const Active& a = active_[i];
    PackedRows& x = hidden_rows_[i];
    x.rows.resize(a.count);
    for (std::size_t j = 0; j < a.count; ++j) {
      x.rows[j] = hidden + a.hidden + static_cast<std::int64_t>(j) * a.expert->gate.rows();
    }
    x.plan(team, a.expert->down, layout);
    downs_[i] = product_of(team, a.expert->down, x);
  }
  std::byte* storage = hidden_storage_.bytes(layout.size());
  pack(team, hidden_rows_, storage);

  // A piece is some outputs of all experts, so that a row's sum is made by one thread, expert after expert.
  const std::int64_t width = any.rows(), panels = any.panels();
  const std::int64_t parts = parts_of_outputs(team.pool.size(), panels, downs_);
  team.run(
      static_cast<std::size_t>(parts), 1, operations_of(downs_), [&](std::size_t begin, std::size_t end, int thread) {
        for (auto i = static_cast<std::int64_t>(begin); i < static_cast<std::int64_t>(end); ++i) {
          const PanelRange range = part_of_panels(panels, i, parts);
          const std::int64_t first = range.first;
          const std::int64_t row = first * Matrix::kPanel;
          const std::int64_t n_rows = std::min(range.panels * Matrix::kPanel, width - row);
          for (float* out : batch.out) std::fill_n(out + row, n_rows, 0.0f);
          for (std::size_t e = 0; e < n; ++e) {
            const Product& product = downs_[e];
            const std::byte* after = e + 1 < n ? downs_[e + 1].w->panel(first) : nullptr;
            prefetch(after);
            if (e + 1 < n) prefetch_rows(*downs_[e + 1].x, storage);
            const std::size_t tiles = product.x->tiles.size();
            for (std::size_t tile = 0; tile < tiles; tile += kTilesAtOnce) {
              const Piece piece{e, first, range.panels, tile, std::min(kTilesAtOnce, tiles - tile)};
              std::byte* scratch = team.scratch[static_cast<std::size_t>(thread)].bytes(scratch_bytes(product, piece));
              float* results = multiply(product, piece, storage, scratch, after);
              for_each_tile(product, piece, results, [&](const PackedRows::Tile& of, const float* outputs) {
                for (int t = 0; t < of.tokens; ++t) {
                  const Pair& pair = pairs_[active_[e].first + static_cast<std::size_t>(of.first + t)];
                  float* to = batch.out[static_cast<std::size_t>(pair.row)] + row;
                  team.kernels.add_outputs(outputs, of.width, t, n_rows, pair.weight, to);
                }
              });
            }
          }
        }
      });
}

}  // namespace shoal::cpu
