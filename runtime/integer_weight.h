#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/matrix.h"
#include "planner/model_config.h"
#include "planner/placement.h"
#include "runtime/checkpoint.h"

namespace shoal {

/// A linear weight [rows = outputs, cols = inputs] in one of the integer forms of Hugging Face folders. Element (r, c)
/// is worth (q - zero) * scale, with a scale (and a zero) for each block of rows and columns. For a weight "x.weight":
///
/// | form                | tensors                                                                                  |
/// | ------------------- | ---------------------------------------------------------------------------------------- |
/// | INT8                | x.weight I8 [rows, cols]; x.weight_scale_inv by blocks, or x.weight_scale [rows, 1]       |
/// | AWQ                 | x.qweight I32 [cols, rows / 8], x.qzeros [groups, rows / 8], x.scales [groups, rows]      |
/// | GPTQ                | x.qweight I32 [cols / 8, rows], x.qzeros [groups, rows / 8], x.scales, x.g_idx I32 [cols] |
/// | compressed-tensors  | x.weight_packed I32 [rows, cols / 8], x.weight_scale [rows, groups], and where not        |
/// |                     | symmetric x.weight_zero_point [rows / 8, groups]                                         |
///
/// (The 8 is 32 / bits.) Sources: AutoAWQ's and AutoGPTQ's packing, compressed-tensors' "pack-quantized" format.
class IntegerWeight {
 public:
  /// Null where `name` is stored in no such form. Reads nothing yet. Error naming file and tensor where the codes are
  /// misshapen.
  static std::shared_ptr<const IntegerWeight> find(const Checkpoint& checkpoint, const std::string& name,
                                                   std::int64_t rows, std::int64_t cols,
                                                   const WeightQuantization& quantization);
  /// Names of the tensors that make up `name` in such a form; empty where it is stored in none.
  static std::vector<std::string> parts(const Checkpoint& checkpoint, const std::string& name);

  /// Reads rows [first, first + count) as floats [count, cols], the first time the scales too; from any threads. Error
  /// naming file and tensor where a part is missing or misshapen. Packed forms want `first` and `count` to be multiples
  /// of 16, but for the end of the matrix.
  void read(std::int64_t first, std::int64_t count, std::vector<float>& out) const;

  /// The form in which these columns stay integers, exactly: with records as wide as groups of columns and slice allow.
  /// Null where no record fits (groups or slices that are no multiples of 32, zeros beyond a byte).
  const PackedFormat* packed(Slice columns) const;
  /// The same for the transpose of these rows, [cols, rows]: where blocks of rows share a scale.
  const PackedFormat* packed_transpose(Slice rows) const;
  /// Reads rows [first, first + count) of these columns into rows [to_first, to_first + count) of a matrix of that
  /// form. As read(), and with `to_first` a multiple of 16.
  void pack(std::int64_t first, std::int64_t count, Slice columns, std::int64_t to_first, Matrix& to) const;
  /// Reads the transpose of these rows into a matrix [cols, rows] of the form that packed_transpose() gave.
  void pack_transpose(Slice rows, Matrix& to) const;
  /// GPTQ's act-order: which column of the weight each column of a packed matrix is; empty: the same.
  const std::vector<std::int32_t>& order() const { return order_; }

  /// How many rows to read at a time, so that no more than a few MB are on their way.
  std::int64_t rows_at_a_time() const;

 private:
  enum class Form { int8, awq, gptq, compressed };
  IntegerWeight(const Checkpoint& checkpoint, std::string prefix, std::int64_t rows, std::int64_t cols,
                const WeightQuantization& quantization);

  /// Which tensor holds the scales, and what shares one.
  void find_scales();
  void find_order();
  Scales kept_scales() const;
  void load() const;
  void load_scales() const;
  void load_group_scales() const;
  void load_compressed_zeros() const;
  /// Where the codes of a strip of rows lie in the file, read into one piece.
  std::vector<std::byte> read_codes(std::int64_t first, std::int64_t count) const;
  /// The codes of one row of such a strip, [cols], signed ones plus 128.
  void row_codes(const std::vector<std::byte>& strip, std::int64_t count, std::int64_t row, std::uint8_t* codes) const;
  /// What a record of a packed matrix begins with.
  void set_head(std::int64_t row, std::int64_t group, CodeBlock& block) const;
  std::int64_t scale_at(std::int64_t row, std::int64_t group) const {
    return row / scale_rows_ * scales_across_ + group;
  }
  const TensorInfo& part(const char* suffix, std::initializer_list<std::int64_t> shape, const char* type) const;
  std::vector<std::int32_t> words(const TensorInfo& tensor) const;
  std::int64_t per_word() const { return 32 / bits_; }

  const Checkpoint& checkpoint_;
  const std::string prefix_;  // "model.layers.0.mlp.up_proj."
  const std::int64_t rows_, cols_;
  const WeightQuantization quantization_;
  Form form_ = Form::int8;
  int bits_ = 8;
  const TensorInfo *codes_ = nullptr, *scale_tensor_ = nullptr;
  int zero_ = 128;                                // of all codes, where zeros_ is empty
  bool has_zeros_ = false;                        // one for each scale
  std::int64_t scale_rows_ = 1, scale_cols_ = 1;  // rows and columns that share a scale
  std::int64_t scales_across_ = 1;
  std::vector<std::int32_t> group_of_;  // [cols], GPTQ with act-order; empty: in order
  std::vector<std::int32_t> order_;     // the columns sorted by group; empty: in order, or groups differ in size

  mutable std::once_flag loaded_;             // guards what follows
  mutable std::vector<float> scales_;         // [ceil(rows / scale_rows), scales_across_]
  mutable std::vector<std::uint16_t> zeros_;  // likewise
};

}  // namespace shoal
