#include "runtime/tensor_loader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/task_team.h"

namespace shoal {
namespace {

/// Bytes read at a time: large enough for full disk speed, small enough that staging does not count.
constexpr std::int64_t kChunkBytes = 4 << 20;

/// The type a tensor is computed in. Formats of blocks are expanded to FP32, which holds what they are worth exactly.
DType compute_type(const TensorInfo& tensor, const Checkpoint& checkpoint) {
  if (tensor.dtype) return *tensor.dtype;
  if (tensor.format) return DType::f32;
  fail("{}: tensor {} has type {}, which is not supported (F32, F16, BF16, F8_E4M3 and GGUF's are)",
       checkpoint.files()[static_cast<std::size_t>(tensor.file)].string(), tensor.name, tensor.type);
}

float scale_at(const BlockScales& s, std::int64_t row, std::int64_t col, std::int64_t cols) {
  if (s.empty()) return 1.0f;
  const std::int64_t per_row = (cols + s.block_cols - 1) / s.block_cols;
  return s.values[static_cast<std::size_t>(row / s.block_rows * per_row + col / s.block_cols)];
}

/// The scales of the transpose of a matrix [rows, cols].
BlockScales transposed(const BlockScales& s, std::int64_t rows, std::int64_t cols) {
  const std::int64_t down = (rows + s.block_rows - 1) / s.block_rows, across = (cols + s.block_cols - 1) / s.block_cols;
  BlockScales result{{}, s.block_cols, s.block_rows};
  for (std::int64_t c = 0; c < across; ++c)
    for (std::int64_t r = 0; r < down; ++r) result.values.push_back(s.values[static_cast<std::size_t>(r * across + c)]);
  return result;
}

/// The form in which these columns of a tensor stay quantized; null: as floats, or where a slice cuts through blocks.
const PackedFormat* packed_form(const TensorInfo& tensor, Slice columns) {
  const PackedFormat* packed = tensor.format && !tensor.dtype ? packed_format(*tensor.format) : nullptr;
  const bool whole = packed && columns.first % packed->record() == 0 && columns.count % packed->record() == 0;
  return whole ? packed : nullptr;
}

/// Source rows and columns of one read.
struct Patch {
  std::int64_t row, rows, first_col, cols;
};

/// A patch of a tensor in blocks, expanded: whole rows are read, then the wanted columns kept.
void read_blocks(const Checkpoint& checkpoint, const TensorInfo& tensor, std::int64_t tensor_cols, const Patch& patch,
                 std::vector<std::byte>& staging) {
  const QuantFormat& format = *tensor.format;
  const std::int64_t row_bytes = format.bytes(tensor_cols);
  std::vector<std::byte> rows(static_cast<std::size_t>(patch.rows * row_bytes));
  checkpoint.read(tensor, static_cast<std::uint64_t>(patch.row * row_bytes), rows);
  std::vector<float> values(static_cast<std::size_t>(tensor_cols));
  const auto kept = static_cast<std::size_t>(patch.cols) * sizeof(float);
  staging.resize(static_cast<std::size_t>(patch.rows) * kept);
  for (std::int64_t r = 0; r < patch.rows; ++r) {
    format.dequantize(rows.data() + r * row_bytes, tensor_cols, values.data());
    std::memcpy(staging.data() + static_cast<std::size_t>(r) * kept, values.data() + patch.first_col, kept);
  }
}

/// Reads a patch of a row-major tensor into `staging`, in its compute type, packed tightly: one read where rows are
/// whole, else one a row.
void read_patch(const Checkpoint& checkpoint, const TensorInfo& tensor, std::int64_t tensor_cols, const Patch& patch,
                std::vector<std::byte>& staging) {
  if (!tensor.dtype) return read_blocks(checkpoint, tensor, tensor_cols, patch, staging);
  const auto size = static_cast<std::int64_t>(size_of(*tensor.dtype));
  staging.resize(static_cast<std::size_t>(patch.rows * patch.cols * size));
  if (patch.cols == tensor_cols) {
    checkpoint.read(tensor, static_cast<std::uint64_t>(patch.row * tensor_cols * size), staging);
    return;
  }
  for (std::int64_t r = 0; r < patch.rows; ++r)
    checkpoint.read(tensor, static_cast<std::uint64_t>(((patch.row + r) * tensor_cols + patch.first_col) * size),
                    std::span(staging).subspan(static_cast<std::size_t>(r * patch.cols * size),
                                               static_cast<std::size_t>(patch.cols * size)));
}

}  // namespace

/// A stored matrix as the loader reads it.
struct TensorLoader::Source {
  const TensorInfo* tensor = nullptr;  // null: integers
  std::shared_ptr<const IntegerWeight> integers;
  std::int64_t cols = 0;
  DType type = DType::f32;  // of what read() gives; integers become FP32
  const Checkpoint* checkpoint = nullptr;

  void read(const Patch& patch, std::vector<std::byte>& staging) const {
    if (!integers) return read_patch(*checkpoint, *tensor, cols, patch, staging);
    std::vector<float> rows;
    integers->read(patch.row, patch.rows, rows);
    const auto kept = static_cast<std::size_t>(patch.cols) * sizeof(float);
    staging.resize(static_cast<std::size_t>(patch.rows) * kept);
    for (std::int64_t r = 0; r < patch.rows; ++r)
      std::memcpy(staging.data() + static_cast<std::size_t>(r) * kept, rows.data() + r * cols + patch.first_col, kept);
  }
  /// Of which `row_bytes` are kept each. A multiple of a panel's rows.
  std::int64_t rows_at_a_time(std::int64_t row_bytes) const {
    if (integers) return integers->rows_at_a_time();
    return std::max<std::int64_t>(1, kChunkBytes / (row_bytes * Matrix::kPanel)) * Matrix::kPanel;
  }
};

TensorLoader::TensorLoader(const Checkpoint& checkpoint, WeightQuantization quantization, Backend* device)
    : checkpoint_(checkpoint), quantization_(std::move(quantization)), device_(device) {}

void TensorLoader::add(std::uint64_t bytes, std::function<void(std::vector<std::byte>&)> work) {
  bytes_ += bytes;
  tasks_.push_back({bytes, std::move(work)});
}

std::function<void()> TensorLoader::placing(Matrix& matrix, std::int64_t parts) const {
  return [device = device_, &matrix, left = std::make_shared<std::atomic<std::int64_t>>(parts)] {
    if (--*left == 0 && device) device->place(matrix);
  };
}

BlockScales TensorLoader::scales(const std::string& name, std::int64_t rows, std::int64_t cols, Slice row_slice,
                                 Slice col_slice) {
  const int block_rows = quantization_.block_rows, block_cols = quantization_.block_cols;
  if (block_rows <= 0 || block_cols <= 0)
    fail("{}: tensor {} is FP8, but config.json's quantization_config gives no weight_block_size",
         checkpoint_.files().front().string(), name);
  const std::array<std::int64_t, 2> shape = {(rows + block_rows - 1) / block_rows,
                                             (cols + block_cols - 1) / block_cols};
  const TensorInfo& tensor = checkpoint_.require(name + "_scale_inv", shape);
  BlockScales whole{checkpoint_.read_floats(tensor), block_rows, block_cols};
  if (row_slice.first == 0 && row_slice.count == rows && col_slice.first == 0 && col_slice.count == cols) return whole;
  // A slice that starts inside a block gets finer blocks, so that its own blocks start at its edge.
  BlockScales part;
  part.block_rows = static_cast<int>(std::gcd<std::int64_t>(row_slice.first, block_rows));
  part.block_cols = static_cast<int>(std::gcd<std::int64_t>(col_slice.first, block_cols));
  for (std::int64_t r = 0; r < row_slice.count; r += part.block_rows)
    for (std::int64_t c = 0; c < col_slice.count; c += part.block_cols)
      part.values.push_back(scale_at(whole, row_slice.first + r, col_slice.first + c, cols));
  return part;
}

TensorLoader::Source TensorLoader::source_of(const TensorInfo& tensor, std::int64_t cols) const {
  return {&tensor, nullptr, cols, compute_type(tensor, checkpoint_), &checkpoint_};
}

TensorLoader::Source TensorLoader::source_of(const std::string& name, std::int64_t rows, std::int64_t cols) const {
  auto integers = IntegerWeight::find(checkpoint_, name, rows, cols, quantization_);
  if (integers) return {nullptr, std::move(integers), cols, DType::f32, &checkpoint_};
  return source_of(checkpoint_.require(name, std::array{rows, cols}), cols);
}

void TensorLoader::matrix(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols,
                          std::optional<Slice> row_slice, std::optional<Slice> col_slice) {
  const Slice r = row_slice.value_or(Slice{0, rows}), c = col_slice.value_or(Slice{0, cols});
  if (r.count == 0 || c.count == 0) return;
  const Source source = source_of(name, rows, cols);
  fill(to, source, r, c);
  if (source.type == DType::f8_e4m3) to.set_scales(scales(name, rows, cols, r, c));
}

std::int64_t TensorLoader::block_columns(const std::string& name, std::int64_t rows, std::int64_t cols) const {
  constexpr std::int64_t one_scale_a_row = 128;  // any multiple of a record's smallest would do
  const Source source = source_of(name, rows, cols);
  if (source.type == DType::f8_e4m3) return quantization_.block_cols;
  if (!source.integers) {
    const PackedFormat* packed = packed_form(*source.tensor, {0, cols});
    return packed ? packed->record() : 1;
  }
  if (quantization_.block_cols > 0) return quantization_.block_cols;
  return quantization_.group_size > 0 ? quantization_.group_size : one_scale_a_row;
}

void TensorLoader::fill(Matrix& to, const Source& source, Slice rows, Slice columns) {
  if (source.tensor) {
    const PackedFormat* packed = packed_form(*source.tensor, columns);
    if (packed) return packed_matrix(to, *source.tensor, *packed, source.cols, rows, columns);
  } else if (rows.first % Matrix::kPanel == 0) {
    const PackedFormat* packed = source.integers->packed(columns);
    if (packed) return packed_integers(to, source.integers, *packed, rows, columns);
  }
  to = Matrix(source.type, rows.count, columns.count);
  const auto row_bytes = columns.count * static_cast<std::int64_t>(size_of(source.type));
  const std::int64_t at_a_time = source.rows_at_a_time(row_bytes);
  const auto done = placing(to, (rows.count + at_a_time - 1) / at_a_time);
  for (std::int64_t first = 0; first < rows.count; first += at_a_time) {
    const std::int64_t count = std::min(rows.count - first, at_a_time);
    add(static_cast<std::uint64_t>(count * row_bytes), [=, &to](std::vector<std::byte>& staging) {
      source.read({rows.first + first, count, columns.first, columns.count}, staging);
      to.pack_rows(first, count, staging.data(), row_bytes);
      done();
    });
  }
}

void TensorLoader::packed_matrix(Matrix& to, const TensorInfo& tensor, const PackedFormat& packed, std::int64_t cols,
                                 Slice rows, Slice columns) {
  to = Matrix(packed, rows.count, columns.count);
  const QuantFormat& format = *tensor.format;
  const std::int64_t row_bytes = format.bytes(cols), kept = format.bytes(columns.count),
                     skipped = format.bytes(columns.first);
  const std::int64_t at_a_time = std::max<std::int64_t>(1, kChunkBytes / (row_bytes * Matrix::kPanel)) * Matrix::kPanel;
  const auto done = placing(to, (rows.count + at_a_time - 1) / at_a_time);
  for (std::int64_t first = 0; first < rows.count; first += at_a_time) {
    const std::int64_t count = std::min(at_a_time, rows.count - first);
    // Whole rows are read even where a part of each is kept: one large read beats many small ones.
    add(static_cast<std::uint64_t>(count * kept), [=, this, &to, &tensor](std::vector<std::byte>& staging) {
      staging.resize(static_cast<std::size_t>(count * row_bytes));
      checkpoint_.read(tensor, static_cast<std::uint64_t>((rows.first + first) * row_bytes), staging);
      to.pack_rows(first, count, staging.data() + skipped, row_bytes);
      done();
    });
  }
}

void TensorLoader::packed_integers(Matrix& to, const std::shared_ptr<const IntegerWeight>& integers,
                                   const PackedFormat& packed, Slice rows, Slice columns) {
  to = Matrix(packed, rows.count, columns.count);
  to.set_order(integers->order());
  const std::int64_t at_a_time = integers->rows_at_a_time();
  const auto done = placing(to, (rows.count + at_a_time - 1) / at_a_time);
  for (std::int64_t first = 0; first < rows.count; first += at_a_time) {
    const std::int64_t count = std::min(at_a_time, rows.count - first);
    add(static_cast<std::uint64_t>(count * to.panel_bytes() / Matrix::kPanel), [=, &to](std::vector<std::byte>&) {
      integers->pack(rows.first + first, count, columns, first, to);
      done();
    });
  }
}

void TensorLoader::matrix_f32(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols) {
  const TensorInfo& tensor = checkpoint_.require(name, std::array{rows, cols});
  const DType type = compute_type(tensor, checkpoint_);
  to = Matrix(DType::f32, rows, cols);
  const auto bytes = static_cast<std::uint64_t>(rows * cols) * size_of(type);
  const auto done = placing(to, 1);
  add(bytes, [=, this, &to, &tensor](std::vector<std::byte>& staging) {
    read_patch(checkpoint_, tensor, cols, {0, rows, 0, cols}, staging);
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = element_to_f32(type, staging.data() + i * size_of(type));
    to.pack_rows(0, rows, values.data(), cols * 4);
    done();
  });
}

void TensorLoader::kv_b(std::vector<Matrix>& k_up, std::vector<Matrix>& v_up, const std::string& name, int heads,
                        int qk_nope_head_dim, int v_head_dim, int kv_lora_rank) {
  const std::int64_t per_head = qk_nope_head_dim + v_head_dim, rows = heads * per_head, cols = kv_lora_rank;
  if (!has(name) && IntegerWeight::parts(checkpoint_, name).empty()) {
    const auto half = [&](const char* part) { return std::string(name).replace(name.find("kv_b_proj"), 9, part); };
    per_head_matrices(k_up, half("k_b_proj"), heads, kv_lora_rank, qk_nope_head_dim);
    per_head_matrices(v_up, half("v_b_proj"), heads, v_head_dim, kv_lora_rank);
    return;
  }
  const Source source = source_of(name, rows, cols);
  const DType type = source.type;
  k_up.resize(static_cast<std::size_t>(heads));
  v_up.resize(static_cast<std::size_t>(heads));
  for (int h = 0; h < heads; ++h) {
    const Slice keys{h * per_head, qk_nope_head_dim}, values{keys.first + keys.count, v_head_dim};
    Matrix& k = k_up[static_cast<std::size_t>(h)];
    Matrix& v = v_up[static_cast<std::size_t>(h)];
    fill_transposed(k, source, keys);
    fill(v, source, values, {0, cols});
    if (type == DType::f8_e4m3) {
      k.set_scales(transposed(scales(name, rows, cols, keys, {0, cols}), keys.count, cols));
      v.set_scales(scales(name, rows, cols, values, {0, cols}));
    }
  }
}

void TensorLoader::fill_transposed(Matrix& to, const Source& source, Slice rows) {
  const std::int64_t cols = source.cols;
  if (const PackedFormat* packed = source.integers ? source.integers->packed_transpose(rows) : nullptr) {
    to = Matrix(*packed, cols, rows.count);
    const auto done = placing(to, 1);
    add(static_cast<std::uint64_t>(to.bytes()), [=, &to](std::vector<std::byte>&) {
      source.integers->pack_transpose(rows, to);
      done();
    });
    return;
  }
  const auto size = static_cast<std::int64_t>(size_of(source.type));
  to = Matrix(source.type, cols, rows.count);
  const auto done = placing(to, 1);
  add(static_cast<std::uint64_t>(rows.count * cols * size), [=, &to](std::vector<std::byte>& staging) {
    source.read({rows.first, rows.count, 0, cols}, staging);
    std::vector<std::byte> turned(static_cast<std::size_t>(rows.count * cols * size));
    for (std::int64_t r = 0; r < rows.count; ++r)
      for (std::int64_t c = 0; c < cols; ++c)
        std::memcpy(turned.data() + (c * rows.count + r) * size, staging.data() + (r * cols + c) * size,
                    static_cast<std::size_t>(size));
    to.pack_rows(0, cols, turned.data(), rows.count * size);
    done();
  });
}

void TensorLoader::per_head_matrices(std::vector<Matrix>& to, const std::string& name, int heads, std::int64_t rows,
                                     std::int64_t cols) {
  const TensorInfo& tensor = checkpoint_.require(name, std::array{std::int64_t{heads}, rows, cols});
  const Source source = source_of(tensor, cols);
  if (source.type == DType::f8_e4m3) fail("tensor {}: FP8 is not supported here", name);
  to.resize(static_cast<std::size_t>(heads));
  const PackedFormat* packed = packed_form(tensor, {0, cols});
  for (int h = 0; h < heads; ++h) {
    Matrix& of_head = to[static_cast<std::size_t>(h)];
    if (packed)
      packed_matrix(of_head, tensor, *packed, cols, {h * rows, rows}, {0, cols});
    else
      fill(of_head, source, {h * rows, rows}, {0, cols});
  }
}

void TensorLoader::vector(std::vector<float>& to, const std::string& name, std::int64_t size,
                          std::optional<Slice> slice) {
  const TensorInfo& tensor = checkpoint_.require(name, std::array{size});
  const DType type = compute_type(tensor, checkpoint_);
  const Slice s = slice.value_or(Slice{0, size});
  if (s.count == 0) return;
  add(static_cast<std::uint64_t>(s.count) * size_of(type), [=, this, &to, &tensor](std::vector<std::byte>& staging) {
    read_patch(checkpoint_, tensor, size, {0, 1, s.first, s.count}, staging);
    to.resize(static_cast<std::size_t>(s.count));
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = element_to_f32(type, staging.data() + i * size_of(type));
    if (device_) device_->place(std::span<const float>(to));
  });
}

void TensorLoader::run(int threads, const std::function<void(std::uint64_t)>& progress) {
  auto tasks = std::exchange(tasks_, {});
  run_tasks(threads, tasks.size(), [&, staging = std::vector<std::byte>()](std::size_t i) mutable {
    // Taken out, so that what it holds (scales) goes when it is done.
    std::exchange(tasks[i].work, nullptr)(staging);
    progress(tasks[i].bytes);
  });
}

}  // namespace shoal
