#include "runtime/tensor_loader.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "base/error.h"

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

float to_float(const std::byte* p, DType type) {
  std::uint16_t half = 0;
  switch (type) {
    case DType::f32: {
      float f;
      std::memcpy(&f, p, 4);
      return f;
    }
    case DType::f16:
      std::memcpy(&half, p, 2);
      return f16_to_f32(half);
    case DType::bf16:
      std::memcpy(&half, p, 2);
      return bf16_to_f32(half);
    case DType::f8_e4m3:
      return f8_e4m3_to_f32(std::to_integer<std::uint8_t>(*p));
  }
  return 0;
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

TensorLoader::TensorLoader(const Checkpoint& checkpoint, WeightQuantization quantization)
    : checkpoint_(checkpoint), quantization_(std::move(quantization)) {}

void TensorLoader::add(std::uint64_t bytes, std::function<void(std::vector<std::byte>&)> work) {
  bytes_ += bytes;
  tasks_.push_back({bytes, std::move(work)});
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

void TensorLoader::matrix(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols,
                          std::optional<Slice> row_slice, std::optional<Slice> col_slice) {
  const Slice r = row_slice.value_or(Slice{0, rows}), c = col_slice.value_or(Slice{0, cols});
  if (r.count == 0 || c.count == 0) return;
  if (const auto weight = IntegerWeight::find(checkpoint_, name, rows, cols, quantization_)) {
    return expanded_matrix(to, weight, cols, r, c);
  }
  const TensorInfo& tensor = checkpoint_.require(name, std::array{rows, cols});
  const DType type = compute_type(tensor, checkpoint_);
  to = Matrix(type, r.count, c.count);
  if (type == DType::f8_e4m3) to.set_scales(scales(name, rows, cols, r, c));

  const auto row_bytes = c.count * static_cast<std::int64_t>(size_of(type));
  const std::int64_t panels = std::max<std::int64_t>(1, kChunkBytes / (row_bytes * Matrix::kPanel));
  for (std::int64_t first = 0; first < r.count; first += panels * Matrix::kPanel) {
    const std::int64_t count = std::min(r.count - first, panels * Matrix::kPanel);
    add(static_cast<std::uint64_t>(count * row_bytes), [=, this, &to, &tensor](std::vector<std::byte>& staging) {
      read_patch(checkpoint_, tensor, cols, {r.first + first, count, c.first, c.count}, staging);
      to.pack_rows(first, count, staging.data(), row_bytes);
    });
  }
}

void TensorLoader::expanded_matrix(Matrix& to, const std::shared_ptr<const IntegerWeight>& weight, std::int64_t cols,
                                   Slice rows, Slice columns) {
  to = Matrix(DType::f32, rows.count, columns.count);
  const std::int64_t at_a_time = weight->rows_at_a_time();
  for (std::int64_t first = 0; first < rows.count; first += at_a_time) {
    const std::int64_t count = std::min(at_a_time, rows.count - first);
    add(static_cast<std::uint64_t>(count * columns.count) * sizeof(float), [=, &to](std::vector<std::byte>&) {
      std::vector<float> values;
      weight->read(rows.first + first, count, values);
      to.pack_rows(first, count, values.data() + columns.first, cols * static_cast<std::int64_t>(sizeof(float)));
    });
  }
}

void TensorLoader::matrix_f32(Matrix& to, const std::string& name, std::int64_t rows, std::int64_t cols) {
  const TensorInfo& tensor = checkpoint_.require(name, std::array{rows, cols});
  const DType type = compute_type(tensor, checkpoint_);
  to = Matrix(DType::f32, rows, cols);
  const auto bytes = static_cast<std::uint64_t>(rows * cols) * size_of(type);
  add(bytes, [=, this, &to, &tensor](std::vector<std::byte>& staging) {
    read_patch(checkpoint_, tensor, cols, {0, rows, 0, cols}, staging);
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = to_float(staging.data() + i * size_of(type), type);
    to.pack_rows(0, rows, values.data(), cols * 4);
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
  if (const auto weight = IntegerWeight::find(checkpoint_, name, rows, cols, quantization_)) {
    return expanded_kv_b(k_up, v_up, weight, heads, qk_nope_head_dim, v_head_dim, kv_lora_rank);
  }
  const TensorInfo& tensor = checkpoint_.require(name, std::array{rows, cols});
  const DType type = compute_type(tensor, checkpoint_);

  k_up.resize(static_cast<std::size_t>(heads));
  v_up.resize(static_cast<std::size_t>(heads));
  for (int h = 0; h < heads; ++h) {
    const std::int64_t first = h * per_head;
    Matrix& k = k_up[static_cast<std::size_t>(h)] = Matrix(type, kv_lora_rank, qk_nope_head_dim);
    Matrix& v = v_up[static_cast<std::size_t>(h)] = Matrix(type, v_head_dim, kv_lora_rank);
    if (type == DType::f8_e4m3) {
      k.set_scales(transposed(scales(name, rows, cols, {first, qk_nope_head_dim}, {0, cols}), qk_nope_head_dim, cols));
      v.set_scales(scales(name, rows, cols, {first + qk_nope_head_dim, v_head_dim}, {0, cols}));
    }
    const auto head_bytes = static_cast<std::uint64_t>(per_head * cols) * size_of(type);
    add(head_bytes, [=, this, &k, &v, &tensor](std::vector<std::byte>& staging) {
      read_patch(checkpoint_, tensor, cols, {first, per_head, 0, cols}, staging);
      const auto size = static_cast<std::int64_t>(size_of(type));
      std::vector<std::byte> turned(static_cast<std::size_t>(qk_nope_head_dim * cols * size));
      for (std::int64_t r = 0; r < qk_nope_head_dim; ++r)
        for (std::int64_t c = 0; c < cols; ++c)
          std::memcpy(turned.data() + (c * qk_nope_head_dim + r) * size, staging.data() + (r * cols + c) * size,
                      static_cast<std::size_t>(size));
      k.pack_rows(0, kv_lora_rank, turned.data(), qk_nope_head_dim * size);
      v.pack_rows(0, v_head_dim, staging.data() + qk_nope_head_dim * cols * size, cols * size);
    });
  }
}

void TensorLoader::expanded_kv_b(std::vector<Matrix>& k_up, std::vector<Matrix>& v_up,
                                 const std::shared_ptr<const IntegerWeight>& weight, int heads, std::int64_t nope,
                                 std::int64_t value_dim, std::int64_t rank) {
  k_up.resize(static_cast<std::size_t>(heads));
  v_up.resize(static_cast<std::size_t>(heads));
  const std::int64_t per_head = nope + value_dim;
  for (int h = 0; h < heads; ++h) {
    Matrix& k = k_up[static_cast<std::size_t>(h)] = Matrix(DType::f32, rank, nope);
    Matrix& v = v_up[static_cast<std::size_t>(h)] = Matrix(DType::f32, value_dim, rank);
    add(static_cast<std::uint64_t>(per_head * rank) * sizeof(float), [=, &k, &v](std::vector<std::byte>&) {
      std::vector<float> values, transposed(static_cast<std::size_t>(nope * rank));
      weight->read(h * per_head, per_head, values);
      for (std::int64_t r = 0; r < nope; ++r)
        for (std::int64_t c = 0; c < rank; ++c)
          transposed[static_cast<std::size_t>(c * nope + r)] = values[static_cast<std::size_t>(r * rank + c)];
      k.pack_rows(0, rank, transposed.data(), nope * static_cast<std::int64_t>(sizeof(float)));
      v.pack_rows(0, value_dim, values.data() + nope * rank, rank * static_cast<std::int64_t>(sizeof(float)));
    });
  }
}

void TensorLoader::per_head_matrices(std::vector<Matrix>& to, const std::string& name, int heads, std::int64_t rows,
                                     std::int64_t cols) {
  const TensorInfo& tensor = checkpoint_.require(name, std::array{std::int64_t{heads}, rows, cols});
  const DType type = compute_type(tensor, checkpoint_);
  if (type == DType::f8_e4m3) fail("tensor {}: FP8 is not supported here", name);
  to.resize(static_cast<std::size_t>(heads));
  for (int h = 0; h < heads; ++h) {
    Matrix& head = to[static_cast<std::size_t>(h)] = Matrix(type, rows, cols);
    const auto row_bytes = cols * static_cast<std::int64_t>(size_of(type));
    add(static_cast<std::uint64_t>(rows * row_bytes), [=, this, &head, &tensor](std::vector<std::byte>& staging) {
      read_patch(checkpoint_, tensor, cols, {h * rows, rows, 0, cols}, staging);
      head.pack_rows(0, rows, staging.data(), row_bytes);
    });
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
    for (std::size_t i = 0; i < to.size(); ++i) to[i] = to_float(staging.data() + i * size_of(type), type);
  });
}

void TensorLoader::run(int threads, const std::function<void(std::uint64_t)>& progress) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto work = [&] {
    std::vector<std::byte> staging;
    for (std::size_t i; (i = next++) < tasks_.size();) {
      try {
        // Taken out, so that what it holds (scales) goes when it is done.
        std::exchange(tasks_[i].work, nullptr)(staging);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
        next = tasks_.size();
      }
      progress(tasks_[i].bytes);
    }
  };
  std::vector<std::jthread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(work);
  work();
  team.clear();  // joins
  tasks_.clear();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace shoal
