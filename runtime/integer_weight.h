#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "planner/model_config.h"
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
  /// How many rows to read at a time, so that no more than a few MB are on their way.
  std::int64_t rows_at_a_time() const;

 private:
  enum class Form { int8, awq, gptq, compressed };
  IntegerWeight(const Checkpoint& checkpoint, std::string prefix, std::int64_t rows, std::int64_t cols,
                const WeightQuantization& quantization);

  void load_scales();
  void load_int8_scales();
  void load_group_scales();
  void load_compressed_scales();
  /// Where the codes of a strip of rows lie in the file, read into one piece.
  std::vector<std::byte> read_codes(std::int64_t first, std::int64_t count) const;
  /// One code of such a strip.
  int code_at(const std::vector<std::byte>& strip, std::int64_t count, std::int64_t row, std::int64_t col) const;
  const TensorInfo& part(const char* suffix, std::initializer_list<std::int64_t> shape, const char* type) const;
  std::vector<std::int32_t> words(const TensorInfo& tensor) const;
  std::int64_t per_word() const { return 32 / bits_; }

  const Checkpoint& checkpoint_;
  const std::string prefix_;  // "model.layers.0.mlp.up_proj."
  const std::int64_t rows_, cols_;
  const WeightQuantization quantization_;
  Form form_ = Form::int8;
  int bits_ = 8;
  const TensorInfo* codes_ = nullptr;

  mutable std::once_flag loaded_;                 // guards what follows
  std::int64_t scale_rows_ = 1, scale_cols_ = 1;  // rows and columns that share a scale
  std::int64_t scales_across_ = 1;
  std::vector<float> scales_;        // [ceil(rows / scale_rows), scales_across]
  std::vector<std::int16_t> zeros_;  // likewise; empty: `zero_` for all
  int zero_ = 0;
  std::vector<std::int32_t> group_of_;  // [cols], GPTQ with act-order; empty: in order
};

}  // namespace shoal
