#include "kernels/cpu/products.h"

#include <algorithm>
#include <array>
#include <cstdlib>

namespace shoal::cpu {
namespace {

constexpr int kWidestTile = 32;
/// Tokens of a piece at most, but for its last tile: their results stay in the second cache.
constexpr std::int64_t kPieceTokens = 192;
constexpr std::int64_t kPieceResults = 256 * 1024 / 64;  // panels times tokens
/// Pieces for each thread: what a late thread has left is this part of its work. With few tokens all time goes into
/// reading weights, and every piece begins slowly, its first lines not being on their way: then fewer.
constexpr int pieces_per_thread(double tokens) { return tokens <= 8 ? 2 : 6; }
/// Bytes at the beginning of a piece that prefetch() asks for.
constexpr std::int64_t kBeginning = 8192;
/// Bytes of packed rows that prefetch_rows() asks for at most.
constexpr std::int64_t kMostRowBytes = 64 * 1024;
/// Reading a weight costs about as much time as multiplying it so many times.
constexpr double kReadCost = 4;

int largest_code(const PackedFormat& f) {
  if (!f.has_table) return f.bits == 8 ? 128 : (1 << f.bits) - 1;
  int largest = 0;
  for (const std::uint8_t entry : f.table) largest = std::max(largest, std::abs(entry - 128));
  return largest;
}

QuantizedLayout layout_of(const PackedFormat& f) {
  return {f.bits,
          f.record(),
          f.groups(),
          f.scales == Scales::super,
          f.scales == Scales::nibbles,
          f.scales == Scales::bfloat,
          f.scales == Scales::single,
          f.minima,
          f.zeros,
          f.offset,
          f.unit,
          f.minimum_unit,
          largest_code(f),
          f.has_table ? f.table.data() : nullptr,
          f.scale_of.data(),
          f.minima_of_scale ? f.minimum_of.data() : nullptr,
          f.head_bytes(),
          f.step_bytes(),
          f.scale_bytes(),
          f.record_bytes(),
          f.zero_at(),
          f.factor_at(),
          code_layout(f)};
}

Weights weights_of(const Matrix& m) {
  const BlockScales& s = m.scales();
  const std::int64_t scale_cols = s.empty() ? 0 : (m.cols() + s.block_cols - 1) / s.block_cols;
  Weights w{m.panel(0),   m.panel_bytes(),
            m.cols(),     m.padded_cols(),
            m.rows(),     s.empty() ? nullptr : s.values.data(),
            scale_cols,   s.block_rows,
            s.block_cols, {},
            nullptr};
  if (m.format()) w.quantized = layout_of(*m.format());
  return w;
}

WeightKind kind_of(const KernelTable& kernels, const Matrix& m) {
  if (const PackedFormat* f = m.format()) {
    return f->coding != Coding::planes ? WeightKind::quantized_coded
           : f->bits == 8              ? WeightKind::quantized_8
                                       : WeightKind::quantized;
  }
  switch (m.dtype()) {
    case DType::f32:
      return WeightKind::f32;
    case DType::f16:
      return WeightKind::f16;
    case DType::bf16:
      return WeightKind::bf16;
    case DType::f8_e4m3:
      break;
  }
  const BlockScales& s = m.scales();
  const bool regular =
      s.empty() || (s.block_rows % Matrix::kPanel == 0 && s.block_cols % kernels.f8_block_columns == 0);
  return regular && !m.has_nan_codes() ? WeightKind::f8 : WeightKind::f8_any;
}

const Gemm& gemm_for(const Team& team, const Matrix& m) {
  const auto kind = static_cast<std::size_t>(kind_of(team.kernels, m));
  return team.compute == Compute::bf16 ? team.kernels.gemm_bf16[kind] : team.kernels.gemm[kind];
}

/// Width of the next tile where both products must do with it: the narrowest that holds all, else the widest.
int common_width(const Gemm& a, const Gemm& b, std::int64_t remaining, std::int64_t all) {
  if (a.tile_width == b.tile_width) return a.tile_width(remaining, all);
  int width = 1;
  for (int candidate = 1; candidate <= kWidestTile && width < remaining; ++candidate)
    if (a.tile_width(candidate, candidate) == candidate && b.tile_width(candidate, candidate) == candidate)
      width = candidate;
  return width;
}

double cost_of_panel(const Product& p) {
  return static_cast<double>(p.w->cols()) * (static_cast<double>(p.x->rows.size()) + kReadCost);
}

/// The empty statement has an effect as far as compilers know: without one GCC drops calls of functions that do nothing
/// but this.
void prefetch_lines(const std::byte* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
  asm volatile("");
}

/// Panels that share loads of activations.
constexpr std::int64_t kGroup = 4;
std::int64_t groups_of(std::int64_t panels) { return (panels + kGroup - 1) / kGroup; }

/// So many panels, in whole groups where there are so many.
std::int64_t whole_groups(std::int64_t panels) {
  return panels >= kGroup ? panels / kGroup * kGroup : std::max<std::int64_t>(panels, 1);
}

}  // namespace

bool packed_alike(const Team& team, const Matrix& a, const Matrix& b) {
  const Gemm &of_a = gemm_for(team, a), &of_b = gemm_for(team, b);
  return a.cols() == b.cols() && of_a.pack == of_b.pack && of_a.tile_width == of_b.tile_width && a.order() == b.order();
}

Product product_of(const Team& team, const Matrix& w, const PackedRows& x) { return {&w, &x, &gemm_for(team, w)}; }

void PackedRows::plan(const Team& team, const Matrix& w, const Matrix& partner, Layout& layout) {
  gemm = &gemm_for(team, w);
  matrix = &w;
  const Gemm& other = gemm_for(team, partner);
  cols = w.cols();
  tiles.clear();
  const auto n = static_cast<std::int64_t>(rows.size());
  for (std::int64_t first = 0; first < n;) {
    const int width = common_width(*gemm, other, n - first, n);
    const std::int64_t tokens = std::min<std::int64_t>(width, n - first);
    tiles.push_back({first, tokens, width, layout.add(gemm->tile_bytes(width, cols))});
    first += tokens;
  }
}

void pack(Team& team, std::span<const PackedRows> sets, std::byte* storage) {
  std::size_t tiles = 0;
  double elements = 0;
  for (const PackedRows& set : sets) {
    tiles += set.tiles.size();
    elements += static_cast<double>(set.rows.size()) * static_cast<double>(set.cols);
  }
  const auto body = [&](std::size_t begin, std::size_t end, int thread) {
    std::size_t skip = begin, left = end - begin;
    for (const PackedRows& set : sets) {
      for (; skip < set.tiles.size() && left > 0; ++skip, --left) {
        const PackedRows::Tile& tile = set.tiles[skip];
        const float* const* rows = set.rows.data() + tile.first;
        std::array<const float*, kWidestTile> ordered;
        if (const auto& order = set.matrix->order(); !order.empty()) {
          float* to = team.scratch[static_cast<std::size_t>(thread)].floats(tile.tokens * set.cols);
          for (std::int64_t t = 0; t < tile.tokens; ++t, to += set.cols) {
            for (std::int64_t c = 0; c < set.cols; ++c) to[c] = rows[t][order[static_cast<std::size_t>(c)]];
            ordered[static_cast<std::size_t>(t)] = to;
          }
          rows = ordered.data();
        }
        set.gemm->pack(rows, static_cast<int>(tile.tokens), tile.width, set.cols, storage + tile.offset);
      }
      if (left == 0) return;
      skip -= set.tiles.size();
    }
  };
  team.run(tiles, 1, elements, body);
}

void cut(int threads, std::span<const Product> products, std::vector<Piece>& pieces) {
  pieces.clear();
  double total = 0, most_tokens_of_any = 0;
  for (const Product& p : products) {
    total += cost_of_panel(p) * static_cast<double>(p.w->panels());
    most_tokens_of_any = std::max(most_tokens_of_any, static_cast<double>(p.x->rows.size()));
  }
  const double wanted = total / (threads * pieces_per_thread(most_tokens_of_any));

  for (std::size_t i = 0; i < products.size(); ++i) {
    const Product& p = products[i];
    const auto tokens = static_cast<std::int64_t>(p.x->rows.size());
    if (tokens == 0) continue;
    // Few panels and many tokens: the tokens are split as well.
    const double pieces_of_panel = std::max(1.0, cost_of_panel(p) / std::max(wanted, 1.0));
    const std::int64_t most_tokens = std::clamp(
        static_cast<std::int64_t>(static_cast<double>(tokens) / pieces_of_panel), std::int64_t{1}, kPieceTokens);
    const std::size_t tiles = p.x->tiles.size();
    const std::int64_t width = p.x->tiles[0].width;
    // Whole tiles, rounded up: 9 tokens in tiles of 5 and 4 read weights once.
    const auto tiles_at_once = static_cast<std::size_t>((most_tokens + width - 1) / width);
    const std::int64_t tokens_at_once = std::min<std::int64_t>(tokens, std::int64_t(tiles_at_once) * width);
    const double cost = static_cast<double>(p.w->cols()) * (static_cast<double>(tokens_at_once) + kReadCost);
    const std::int64_t panels =
        whole_groups(std::min(static_cast<std::int64_t>(wanted / cost), kPieceResults / tokens_at_once));
    for (std::size_t tile = 0; tile < tiles; tile += tiles_at_once) {
      const std::int64_t parts = (p.w->panels() + panels - 1) / panels;
      for (std::int64_t part = 0; part < parts; ++part) {
        const PanelRange range = part_of_panels(p.w->panels(), part, parts);
        pieces.push_back({i, range.first, range.panels, tile, std::min(tiles_at_once, tiles - tile)});
      }
    }
  }
}

PanelRange part_of_panels(std::int64_t panels, std::int64_t i, std::int64_t n) {
  const bool whole = n <= groups_of(panels);
  const std::int64_t group = whole ? kGroup : 1, groups = whole ? groups_of(panels) : panels;
  const std::int64_t first = groups * i / n * group, end = std::min(groups * (i + 1) / n * group, panels);
  return {first, end - first};
}

std::int64_t parts_of_outputs(int threads, std::int64_t panels, std::span<const Product> products) {
  double tokens = 0;
  for (const Product& p : products) tokens += static_cast<double>(p.x->rows.size());
  tokens /= static_cast<double>(std::max<std::size_t>(1, products.size()));
  const std::int64_t most_panels = tokens <= 8 ? 64 : 16, of_all = threads * most_panels;
  const std::int64_t of_thread = std::max<std::int64_t>(pieces_per_thread(tokens), (panels + of_all - 1) / of_all);
  const std::int64_t wanted = threads * of_thread, groups = groups_of(panels);
  if (wanted > groups) return std::min(wanted, panels);
  // Groups are not to be cut: of parts a little too large and a little too small those that end first.
  const auto parts_of = [&](std::int64_t size) { return (groups + size - 1) / size; };
  const auto time_of = [&](std::int64_t size) { return (parts_of(size) + threads - 1) / threads * size; };
  const std::int64_t small = groups / wanted, large = (groups + wanted - 1) / wanted;
  return parts_of(time_of(small) <= time_of(large) ? small : large);
}

void prefetch(const std::byte* panel) {
  if (panel) prefetch_lines(panel, kBeginning);
}

void prefetch_rows(const PackedRows& x, const std::byte* storage) {
  if (x.tiles.empty()) return;
  const PackedRows::Tile &first = x.tiles.front(), &last = x.tiles.back();
  const std::int64_t bytes = last.offset + x.gemm->tile_bytes(last.width, x.cols) - first.offset;
  prefetch_lines(storage + first.offset, std::min(kMostRowBytes, bytes));
}

const std::byte* next_panel(const Team& team, std::span<const Product> products, std::span<const Piece> pieces,
                            std::size_t i) {
  i += static_cast<std::size_t>(team.pool.size());
  return i < pieces.size() ? products[pieces[i].product].w->panel(pieces[i].first_panel) : nullptr;
}

double operations_of(std::span<const Product> products) {
  double n = 0;
  for (const Product& p : products)
    n += cost_of_panel(p) * static_cast<double>(p.w->panels()) * Matrix::kPanel / kReadCost;
  return n;
}

std::int64_t scratch_bytes(const Product& product, const Piece& piece) {
  std::int64_t results = 0;
  for (std::size_t i = piece.first_tile; i < piece.first_tile + piece.tiles; ++i) {
    results += piece.panels * product.x->tiles[i].width * Matrix::kPanel * 4;
  }
  return results + product.gemm->scratch_bytes(weights_of(*product.w));
}

float* multiply(const Product& product, const Piece& piece, const std::byte* storage, std::byte* scratch,
                const std::byte* after) {
  constexpr std::size_t kMostTiles = kPieceTokens;
  PackedTile tiles[kMostTiles];
  auto* results = reinterpret_cast<float*>(scratch);
  float* next = results;
  for (std::size_t i = 0; i < piece.tiles; ++i) {
    const PackedRows::Tile& tile = product.x->tiles[piece.first_tile + i];
    tiles[i] = {storage + tile.offset, tile.width, next};
    next += piece.panels * tile.width * Matrix::kPanel;
  }
  Weights w = weights_of(*product.w);
  w.after = after;
  product.gemm->run(w, piece.first_panel, piece.panels, tiles, static_cast<int>(piece.tiles),
                    reinterpret_cast<std::byte*>(next));
  return results;
}

}  // namespace shoal::cpu
