#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/packed_format.h"

namespace shoal {

/// Scale factors of a block-quantized matrix: element [r][c] is worth value * scales[r / block_rows][c / block_cols].
/// R1's FP8 checkpoints use 128 x 128 (`weight_scale_inv`).
struct BlockScales {
  std::vector<float> values;  // [ceil(rows / block_rows), ceil(cols / block_cols)]
  int block_rows = 0;
  int block_cols = 0;
  bool empty() const { return values.empty(); }
};

/// A weight matrix [rows = outputs, cols = inputs], held in the one layout every CPU kernel streams: panels of 16 rows;
/// inside a panel, for each column (F32, F8) or pair of columns (16-bit types, the VNNI order of AVX-512 and AMX), the
/// 16 rows' values lie side by side. Rows are padded with zeros to a multiple of 16, columns to a multiple of 2. So one
/// vector load serves 16 outputs, a thread streams memory in order, and the sum over columns of one output runs in the
/// same order whatever the number of tokens (the ground of batch-invariant results).
class Matrix {
 public:
  static constexpr int kPanel = 16;

  Matrix() = default;
  /// An uninitialised matrix (its padding is zero); fill it with pack_rows. Throws Error when memory cannot be had.
  Matrix(DType dtype, std::int64_t rows, std::int64_t cols);
  /// A quantized one, its panels as packed_format.h says. cols must be a multiple of format.record().
  Matrix(const PackedFormat& format, std::int64_t rows, std::int64_t cols);

  /// Packs `count` source rows, already of this dtype in row-major order, `src_stride_bytes` apart, into rows
  /// [first, first + count). Thread-safe for ranges that share no panel. Quantized rows (blocks of format()->stored)
  /// come in whole panels, or up to the last row.
  void pack_rows(std::int64_t first, std::int64_t count, const void* src, std::int64_t src_stride_bytes);
  void set_scales(BlockScales scales);
  /// All panels as they lie in memory, and how a matrix of the same type and shape gets them, to move one between
  /// ranks.
  std::span<const std::byte> packed() const;
  void set_packed(std::span<const std::byte> bytes);
  /// Gives the block of `row` (of those being packed) that begins with column `col`.
  using BlockAt = std::function<void(std::int64_t row, std::int64_t col, CodeBlock& out)>;
  /// The same for the rows of a quantized matrix whose blocks are made, not stored.
  void pack_blocks(std::int64_t first, std::int64_t count, const BlockAt& block_at);
  /// The packed columns are the inputs order[0], order[1], ...: a permutation of [cols], or empty.
  void set_order(std::vector<std::int32_t> order) { order_ = std::move(order); }

  /// The value of one element, scale applied. For tests and reference loops.
  float at(std::int64_t row, std::int64_t col) const;
  /// Writes row `row` as floats to out [cols]; used for embeddings.
  void unpack_row(std::int64_t row, float* out) const;

  /// The elements of one row of a matrix that is not quantized, as they were packed: cols() of dtype().
  void copy_row(std::int64_t row, std::byte* out) const;

  /// The same matrix once more, its elements in host memory. For tests.
  Matrix clone() const;

  /// What a device back end made of this matrix (Backend::place), whose elements are then no longer here.
  const std::shared_ptr<const void>& placed() const { return placed_; }
  void set_placed(std::shared_ptr<const void> placed);

  /// Of a matrix that is not quantized.
  DType dtype() const { return dtype_; }
  /// Null where it is not quantized.
  const PackedFormat* format() const { return format_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t panels() const { return (rows_ + kPanel - 1) / kPanel; }
  std::int64_t panel_bytes() const {
    if (format_) return cols_ / format_->record() * format_->record_bytes();
    return padded_cols() * kPanel * static_cast<std::int64_t>(size_of(dtype_));
  }
  std::int64_t padded_cols() const { return (cols_ + 1) / 2 * 2; }
  const std::byte* panel(std::int64_t p) const { return data_.get() + p * panel_bytes(); }
  const BlockScales& scales() const { return scales_; }
  const std::vector<std::int32_t>& order() const { return order_; }
  /// Whether an F8 matrix holds NaN codes: the fast conversions do not know them, so kernels then take a slower way.
  bool has_nan_codes() const { return has_nan_codes_; }
  /// Bytes this matrix occupies, scales included.
  std::int64_t bytes() const;
  bool empty() const { return rows_ == 0; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  void allocate();
  void check_panels(std::int64_t first, std::int64_t count) const;
  void pack_quantized(std::int64_t first, std::int64_t count, const std::byte* src, std::int64_t src_stride_bytes);

  DType dtype_ = DType::f32;
  const PackedFormat* format_ = nullptr;
  std::int64_t rows_ = 0, cols_ = 0;
  std::unique_ptr<std::byte[], Free> data_;  // 64-byte aligned, transparent huge pages where large
  std::shared_ptr<const void> placed_;
  BlockScales scales_;
  std::vector<std::int32_t> order_;
  bool has_nan_codes_ = false;
};

}  // namespace shoal
