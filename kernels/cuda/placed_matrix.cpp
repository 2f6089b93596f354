#include "kernels/cuda/placed_matrix.h"

#include <algorithm>

namespace shoal::cuda {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{8} << 20;
constexpr std::int64_t kStrideUnit = 16;  // columns

WeightForm form_of(const Matrix& m) {
  if (m.format()) return WeightForm::packed;
  switch (m.dtype()) {
    case DType::f32:
      return WeightForm::f32;
    case DType::f16:
      return WeightForm::f16;
    case DType::bf16:
      return WeightForm::bf16;
    case DType::f8_e4m3:
      return WeightForm::f8;
  }
  fail("a matrix of an unknown type");
}

PackedLayout layout_of(const PackedFormat& f) {
  PackedLayout l;
  l.bits = f.bits;
  l.group = f.group;
  l.scales = f.scales;
  l.coding = f.coding;
  const CodeLayout codes = code_layout(f);
  l.point_columns = codes.point_columns;
  l.extra_bits = codes.extra_bits;
  l.deltas_at = codes.deltas_at;
  l.minima = f.minima;
  l.minima_of_scale = f.minima_of_scale;
  l.zeros = f.zeros;
  l.has_table = f.has_table;
  l.record = f.record();
  l.record_bytes = f.record_bytes();
  l.zero_at = f.zero_at();
  l.factor_at = f.factor_at();
  l.head_bytes = f.head_bytes();
  l.step_bytes = f.step_bytes();
  l.scale_bytes = f.scale_bytes();
  l.offset = f.offset;
  l.unit = f.unit;
  l.minimum_unit = f.minimum_unit;
  std::copy(f.table.begin(), f.table.end(), l.table);
  std::copy(f.scale_of.begin(), f.scale_of.end(), l.scale_of);
  std::copy(f.minimum_of.begin(), f.minimum_of.end(), l.minimum_of);
  return l;
}

}  // namespace

MatrixPlacer::MatrixPlacer() : staging_(kStagingBytes) {}

void MatrixPlacer::copy(const void* from, std::byte* to, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
    const std::size_t n = std::min(kStagingBytes, bytes - at);
    std::memcpy(staging_.data(), static_cast<const std::byte*>(from) + at, n);
    check(cudaMemcpyAsync(to + at, staging_.data(), n, cudaMemcpyHostToDevice, stream_), "copying weights to the GPU");
    wait_for(stream_, "copying weights to the GPU");
  }
}

void MatrixPlacer::copy_back(const std::byte* from, std::byte* to, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += kStagingBytes) {
    const std::size_t n = std::min(kStagingBytes, bytes - at);
    check(cudaMemcpyAsync(staging_.data(), from + at, n, cudaMemcpyDeviceToHost, stream_), "copying from the GPU");
    wait_for(stream_, "copying from the GPU");
    std::memcpy(to + at, staging_.data(), n);
  }
}

void MatrixPlacer::copy_rows(const Matrix& m, const Weights& view, std::byte* to) {
  const auto row_bytes = static_cast<std::size_t>(view.stride) * size_of(m.dtype());
  const auto at_a_time = std::max<std::int64_t>(1, static_cast<std::int64_t>(kStagingBytes / row_bytes));
  std::vector<std::byte> rows;
  for (std::int64_t first = 0; first < m.rows(); first += at_a_time) {
    const std::int64_t n = std::min(at_a_time, m.rows() - first);
    rows.assign(static_cast<std::size_t>(n) * row_bytes, std::byte{0});
    for (std::int64_t r = 0; r < n; ++r) m.copy_row(first + r, rows.data() + static_cast<std::size_t>(r) * row_bytes);
    copy(rows.data(), to + static_cast<std::size_t>(first) * row_bytes, rows.size());
  }
}

void MatrixPlacer::copy_tiles(const Matrix& m, const Weights& view, std::byte* to) {
  const std::int64_t col_tiles = view.stride / kF8Tile;
  std::vector<std::byte> row(static_cast<std::size_t>(m.cols()));
  std::vector<std::byte> tiles;
  for (std::int64_t first = 0; first < m.rows(); first += kF8Tile) {
    tiles.assign(static_cast<std::size_t>(col_tiles * kF8TileBytes), std::byte{0});
    for (std::int64_t r = 0; r < std::min<std::int64_t>(kF8Tile, m.rows() - first); ++r) {
      m.copy_row(first + r, row.data());
      for (std::int64_t c = 0; c < m.cols(); ++c)
        tiles[static_cast<std::size_t>(f8_offset(r, c, col_tiles))] = row[static_cast<std::size_t>(c)];
    }
    copy(tiles.data(), to + first / kF8Tile * col_tiles * kF8TileBytes, tiles.size());
  }
}

std::shared_ptr<const PlacedMatrix> MatrixPlacer::place(const Matrix& m) {
  auto placed = std::make_shared<PlacedMatrix>();
  Weights& view = placed->view;
  view.form = form_of(m);
  view.rows = m.rows();
  view.cols = m.cols();
  if (view.form == WeightForm::packed) {
    view.packed = layout_of(*m.format());
    const auto bytes = m.packed().size(), points_at = (bytes + 63) / 64 * 64;
    const PointSet* points = m.format()->points;
    const std::size_t points_bytes = points ? 2 * static_cast<std::size_t>(points->size()) : 0;
    placed->data = DeviceBlock(points ? points_at + points_bytes : bytes);
    copy(m.packed().data(), placed->data.data(), bytes);
    if (points) {
      copy(points->table.data(), placed->data.data() + points_at, points_bytes);
      view.packed.points = reinterpret_cast<const std::uint8_t*>(placed->data.data() + points_at);
    }
  } else if (view.form == WeightForm::f8) {
    view.stride = (m.cols() + kF8Tile - 1) / kF8Tile * kF8Tile;
    const std::int64_t row_tiles = (m.rows() + kF8Tile - 1) / kF8Tile;
    placed->data = DeviceBlock(static_cast<std::size_t>(row_tiles * kF8Tile * view.stride));
    copy_tiles(m, view, placed->data.data());
  } else {
    view.stride = (m.cols() + kStrideUnit - 1) / kStrideUnit * kStrideUnit;
    placed->data = DeviceBlock(static_cast<std::size_t>(m.rows() * view.stride) * size_of(m.dtype()));
    copy_rows(m, view, placed->data.data());
  }
  view.data = placed->data.data();
  if (const BlockScales& s = m.scales(); !s.empty()) {
    view.block_rows = s.block_rows;
    view.block_cols = s.block_cols;
    view.scale_cols = static_cast<int>((m.cols() + s.block_cols - 1) / s.block_cols);
    placed->scales = DeviceBlock(s.values.size() * sizeof(float));
    copy(s.values.data(), placed->scales.data(), placed->scales.bytes());
    view.scales = reinterpret_cast<const float*>(placed->scales.data());
  }
  if (!m.order().empty()) {
    placed->order = DeviceBlock(m.order().size() * sizeof(std::int32_t));
    copy(m.order().data(), placed->order.data(), placed->order.bytes());
    view.order = reinterpret_cast<const std::int32_t*>(placed->order.data());
  }
  placed->view_on_device = DeviceBlock(sizeof view);
  copy(&view, placed->view_on_device.data(), sizeof view);
  return placed;
}

Matrix MatrixPlacer::fetch(const Matrix& m, const PlacedMatrix& placed) {
  const Weights& view = placed.view;
  Matrix host = m.format() ? Matrix(*m.format(), m.rows(), m.cols()) : Matrix(m.dtype(), m.rows(), m.cols());
  if (m.format()) {
    std::vector<std::byte> panels(host.packed().size());
    copy_back(placed.data.data(), panels.data(), panels.size());
    host.set_packed(panels);
  } else {
    // As many rows at a time as lie together in tiles, which are whole panels.
    const bool tiles = view.form == WeightForm::f8;
    const std::size_t size = size_of(m.dtype()), row_bytes = static_cast<std::size_t>(view.stride) * size;
    std::vector<std::byte> there(kF8Tile * row_bytes), row(there.size());
    for (std::int64_t first = 0; first < m.rows(); first += kF8Tile) {
      const std::int64_t n = std::min<std::int64_t>(kF8Tile, m.rows() - first);
      const std::size_t bytes = tiles ? there.size() : static_cast<std::size_t>(n) * row_bytes;
      copy_back(view.data + static_cast<std::size_t>(first) * row_bytes, there.data(), bytes);
      if (tiles)
        for (std::int64_t r = 0; r < n; ++r)
          for (std::int64_t c = 0; c < m.cols(); ++c)
            row[static_cast<std::size_t>(r * view.stride + c)] =
                there[static_cast<std::size_t>(f8_offset(r, c, view.stride / kF8Tile))];
      host.pack_rows(first, n, (tiles ? row : there).data(), static_cast<std::int64_t>(row_bytes));
    }
  }
  host.set_scales(m.scales());
  host.set_order(m.order());
  return host;
}

}  // namespace shoal::cuda
