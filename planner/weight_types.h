#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace shoal {

/// How a weight matrix is stored: blocks of `block_rows` x `block_cols` elements in `block_bytes`, the factors of the
/// block included. A cut-off block is stored whole in types of one row, and by its elements where `factor_bytes` says
/// so.
struct WeightType {
  std::string_view name;
  int block_cols = 1;
  int block_bytes = 4;  // of the block's elements, and its factors where they lie between them
  int block_rows = 1;
  int factor_bytes = 0;      // of factors kept beside the elements, a block
  int held_block_bytes = 0;  // of the block in a rank's memory; 0: as stored
  double bits() const { return 8.0 * (block_bytes + factor_bytes) / (static_cast<double>(block_cols) * block_rows); }
  /// Bytes of a matrix [rows, cols].
  std::int64_t bytes(std::int64_t rows, std::int64_t cols) const;
  /// The type as a rank holds it: GGUF's blocks become codes that one kernel multiplies (kernels/packed_format.h).
  WeightType held() const;
};

/// F32, F16, BF16, FP8 (E4M3, blocks of 128 x 128), INT8 and INT4 (groups along a row with a BF16 factor) and GGUF's
/// types (ggml-common.h of ggml: the sizes of its block structures). Null: there is no type of that name.
const WeightType* find_weight_type(std::string_view name);
/// The same for a name that is known to be one.
const WeightType& weight_type(std::string_view name);

}  // namespace shoal
