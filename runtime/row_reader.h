#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "planner/model_config.h"
#include "runtime/checkpoint.h"
#include "runtime/integer_weight.h"

namespace shoal {

/// Rows of a stored matrix [rows, cols] as floats, however it is stored: plain types, FP8 with its block scales,
/// formats of blocks, integers with scales. For work on weights one at a time (quantizing them, measuring them); the
/// loader has faster ways into a Matrix. Safe to use from many threads.
class RowReader {
 public:
  /// Error naming file and tensor where it is missing, has another shape, or a type without a meaning as numbers. A
  /// vector is a matrix of one row, a stack of matrices [n, rows / n, cols] one of all their rows.
  RowReader(const Checkpoint& checkpoint, const WeightQuantization& quantization, const std::string& name,
            std::int64_t rows, std::int64_t cols);

  /// Rows [first, first + count) as floats [count, cols].
  void read(std::int64_t first, std::int64_t count, std::vector<float>& out) const;

 private:
  void restore_fp8(std::int64_t first, std::int64_t count, const std::vector<std::byte>& codes, float* out) const;

  const Checkpoint& checkpoint_;
  const std::int64_t cols_;
  std::shared_ptr<const IntegerWeight> integers_;
  const TensorInfo* tensor_ = nullptr;
  const QuantFormat* format_ = nullptr;  // null: FP8
  std::vector<float> scales_;            // FP8's
  int block_rows_ = 0, block_cols_ = 0;
};

}  // namespace shoal
