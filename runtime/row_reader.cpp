#include "runtime/row_reader.h"

#include <array>

#include "base/error.h"

namespace shoal {

RowReader::RowReader(const Checkpoint& checkpoint, const WeightQuantization& quantization, const std::string& name,
                     std::int64_t rows, std::int64_t cols)
    : checkpoint_(checkpoint), cols_(cols) {
  integers_ = IntegerWeight::find(checkpoint, name, rows, cols, quantization);
  if (integers_) return;
  const TensorInfo* stored = checkpoint.find(name);
  const bool is_vector = rows == 1 && stored && stored->shape.size() == 1;
  const bool is_stack = stored && stored->shape.size() == 3 && stored->shape[0] * stored->shape[1] == rows;
  if (is_vector) {
    tensor_ = &checkpoint.require(name, std::array{cols});
  } else if (is_stack) {
    tensor_ = &checkpoint.require(name, std::array{stored->shape[0], stored->shape[1], cols});
  } else {
    tensor_ = &checkpoint.require(name, std::array{rows, cols});
  }
  format_ = tensor_->format;
  if (!format_ && tensor_->dtype) format_ = find_format(name_of(*tensor_->dtype));
  if (format_) return;
  if (tensor_->dtype != DType::f8_e4m3) {
    fail("{}: tensor {} has the type {}, which is not supported",
         checkpoint.files()[static_cast<std::size_t>(tensor_->file)].string(), name, tensor_->type);
  }
  block_rows_ = quantization.block_rows;
  block_cols_ = quantization.block_cols;
  if (block_rows_ < 1 || block_cols_ < 1) {
    fail("{}: tensor {} is FP8, but config.json's quantization_config gives no weight_block_size",
         checkpoint.files().front().string(), name);
  }
  const std::array<std::int64_t, 2> blocks = {(rows + block_rows_ - 1) / block_rows_,
                                              (cols + block_cols_ - 1) / block_cols_};
  scales_ = checkpoint.read_floats(checkpoint.require(name + "_scale_inv", blocks));
}

void RowReader::read(std::int64_t first, std::int64_t count, std::vector<float>& out) const {
  if (integers_) return integers_->read(first, count, out);
  out.resize(static_cast<std::size_t>(count * cols_));
  const std::int64_t row_bytes = format_ ? format_->bytes(cols_) : cols_;
  std::vector<std::byte> stored(static_cast<std::size_t>(count * row_bytes));
  checkpoint_.read(*tensor_, static_cast<std::uint64_t>(first * row_bytes), stored);
  if (format_) {
    format_->dequantize(stored.data(), count * cols_, out.data());
  } else {
    restore_fp8(first, count, stored, out.data());
  }
}

void RowReader::restore_fp8(std::int64_t first, std::int64_t count, const std::vector<std::byte>& codes,
                            float* out) const {
  const std::int64_t across = (cols_ + block_cols_ - 1) / block_cols_;
  for (std::int64_t r = 0; r < count; ++r) {
    const float* scales = scales_.data() + (first + r) / block_rows_ * across;
    for (std::int64_t c = 0; c < cols_; ++c) {
      const auto code = std::to_integer<std::uint8_t>(codes[static_cast<std::size_t>(r * cols_ + c)]);
      out[r * cols_ + c] = f8_e4m3_to_f32(code) * scales[c / block_cols_];
    }
  }
}

}  // namespace shoal
