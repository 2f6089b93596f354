#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "planner/model_config.h"
#include "planner/placement.h"
#include "runtime/checkpoint.h"
#include "runtime/integer_weight.h"

namespace shoal {

/// Collects what is to be loaded, then reads and packs it in parallel, chunk by chunk through small staging buffers.
/// Destinations must stay where they are until run() returned.
class TensorLoader {
 public:
  /// device: where what was read is placed, if not null.
  TensorLoader(const Checkpoint& checkpoint, WeightQuantization quantization, Backend* device = nullptr);

  /// Rows and columns (whole if not given) of a matrix [rows, cols] under `name`, kept in the type the file has.
  /// FP8 comes with its `<name>_scale_inv`. Formats of blocks (Q4_K, ...) and integers (integer_weight.h) stay
  /// quantized, but are expanded to FP32 where a slice of columns cuts through blocks or groups.
  void matrix(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols,
              std::optional<Slice> row_slice = {}, std::optional<Slice> col_slice = {});
  /// A matrix converted to FP32.
  void matrix_f32(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols);
  /// kv_b_proj [heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank] into per-head matrices: the key half transposed,
  /// with FP8 and INT8 its blocks of scales too; other quantized forms do not survive turning, so their key half
  /// becomes FP32. Where the tensor is missing, its halves are loaded: k_b_proj [heads, kv_lora_rank,
  /// qk_nope_head_dim], already transposed, and v_b_proj [heads, v_head_dim, kv_lora_rank].
  void kv_b(std::vector<Matrix>& k_up, std::vector<Matrix>& v_up, const std::string& name, int heads,
            int qk_nope_head_dim, int v_head_dim, int kv_lora_rank);
  /// A vector as FP32; a slice of it if given.
  void vector(std::vector<float>& to, const std::string& name, std::int64_t size, std::optional<Slice> slice = {});

  /// Columns of a matrix [rows, cols] that share a scale, at whole multiples of which a slice stays quantized; 1: any.
  std::int64_t block_columns(const std::string& name, std::int64_t rows, std::int64_t cols) const;
  bool has(const std::string& name) const { return checkpoint_.find(name) != nullptr; }
  std::uint64_t bytes_to_read() const { return bytes_; }
  /// Does it all; throws the first Error.
  void run(int threads, const std::function<void(std::uint64_t bytes)>& progress);

 private:
  struct Task {
    std::uint64_t bytes;
    std::function<void(std::vector<std::byte>& staging)> work;
  };
  BlockScales scales(const std::string& name, std::int64_t rows, std::int64_t cols, Slice row_slice, Slice col_slice);
  struct Source;
  Source source_of(const std::string& name, std::int64_t rows, std::int64_t cols) const;
  Source source_of(const TensorInfo& tensor, std::int64_t cols) const;
  /// Makes `to` out of some rows and columns: quantized if it can stay so, else in the type the source gives.
  void fill(Matrix& to, const Source& source, Slice rows, Slice columns);
  /// The same for the transpose of some rows.
  void fill_transposed(Matrix& to, const Source& source, Slice rows);
  void packed_integers(Matrix& to, const std::shared_ptr<const IntegerWeight>& integers, const PackedFormat& packed,
                       Slice rows, Slice columns);
  void packed_matrix(Matrix& to, const TensorInfo& tensor, const PackedFormat& packed, std::int64_t cols, Slice rows,
                     Slice columns);
  /// The matrices of a stack [heads, rows, cols].
  void per_head_matrices(std::vector<Matrix>& to, const std::string& name, int heads, std::int64_t rows,
                         std::int64_t cols);
  void add(std::uint64_t bytes, std::function<void(std::vector<std::byte>&)> work);
  /// The same for one of `parts` tasks that fill a matrix together; the last to end has it placed.
  std::function<void()> placing(Matrix& matrix, std::int64_t parts) const;

  const Checkpoint& checkpoint_;
  const WeightQuantization quantization_;
  Backend* const device_;
  std::vector<Task> tasks_;
  std::uint64_t bytes_ = 0;
};

}  // namespace shoal
