#include "kernels/matrix.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "kernels/weight_memory.h"

namespace shoal {
namespace {

constexpr int kPanel = Matrix::kPanel;

// 16-byte vectors of the compiler's: SSE2 on x86-64, NEON on ARM. Packing is bound by memory, more width gains nothing.
using Bytes = std::uint8_t __attribute__((vector_size(16)));
using Words = std::uint32_t __attribute__((vector_size(16)));

template <class V>
V load(const std::byte* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// Elements I... of a and, from their number on, b.
template <int... I, class V>
V pick(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, V{I...});
#endif
}

/// Columns c..c+3 (of four bytes each) of rows r..r+3, written as they lie in a panel: 64 bytes from column to column.
void transpose_4x4(const std::byte* src, std::int64_t stride, std::byte* dst) {
  const Words a = load<Words>(src), b = load<Words>(src + stride);
  const Words c = load<Words>(src + 2 * stride), d = load<Words>(src + 3 * stride);
  const Words ab0 = pick<0, 4, 1, 5>(a, b), ab1 = pick<2, 6, 3, 7>(a, b);
  const Words cd0 = pick<0, 4, 1, 5>(c, d), cd1 = pick<2, 6, 3, 7>(c, d);
  const Words out[4] = {pick<0, 1, 4, 5>(ab0, cd0), pick<2, 3, 6, 7>(ab0, cd0), pick<0, 1, 4, 5>(ab1, cd1),
                        pick<2, 3, 6, 7>(ab1, cd1)};
  for (int i = 0; i < 4; ++i) std::memcpy(dst + i * 64, &out[i], 16);
}

/// A full panel of units of four bytes: one F32 value, or two 16-bit ones. `units` of them in a row.
void pack_panel_4(const std::byte* src, std::int64_t stride, std::int64_t units, std::byte* dst) {
  std::int64_t u = 0;
  for (; u + 4 <= units; u += 4) {
    for (int r = 0; r < kPanel; r += 4) {
      transpose_4x4(src + r * stride + u * 4, stride, dst + u * 64 + r * 4);
    }
  }
  for (; u < units; ++u) {
    for (int r = 0; r < kPanel; ++r) std::memcpy(dst + u * 64 + r * 4, src + r * stride + u * 4, 4);
  }
}

/// Four rounds of interleaving row i with row i + 8 transpose a square of 16 x 16 bytes.
void transpose_16x16(const std::byte* src, std::int64_t stride, std::byte* dst) {
  Bytes a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = load<Bytes>(src + i * stride);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = pick<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a[i], a[i + 8]);
      b[2 * i + 1] = pick<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a[i], a[i + 8]);
    }
    std::memcpy(a, b, sizeof a);
  }
  std::memcpy(dst, a, sizeof a);
}

void pack_panel_1(const std::byte* src, std::int64_t stride, std::int64_t cols, std::byte* dst) {
  std::int64_t c = 0;
  for (; c + 16 <= cols; c += 16) transpose_16x16(src + c, stride, dst + c * kPanel);
  for (; c < cols; ++c) {
    for (int r = 0; r < kPanel; ++r) dst[c * kPanel + r] = src[r * stride + c];
  }
}

/// Where element (row in panel, column) of a panel lies, in bytes.
std::int64_t offset_in_panel(DType dtype, std::int64_t row, std::int64_t col) {
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  if (size == 2) return ((col / 2 * kPanel + row) * 2 + col % 2) * 2;
  return (col * kPanel + row) * size;
}

bool any_nan_code(const std::byte* p, std::int64_t bytes) {
  std::uint8_t found = 0;
  for (std::int64_t i = 0; i < bytes; ++i) found |= (static_cast<std::uint8_t>(p[i]) & 0x7f) == 0x7f;
  return found != 0;
}

}  // namespace

void Matrix::Free::operator()(std::byte* p) const { free_weights(p); }

void Matrix::allocate() {
  if (rows_ <= 0 || cols_ <= 0) fail("a matrix of {} x {} has no elements", rows_, cols_);
  const auto bytes = static_cast<std::size_t>(panels() * panel_bytes());
  data_.reset(allocate_weights(bytes));
  if (!data_)
    fail("no memory for a {} matrix of {} x {} ({:.1f} MB)", format_ ? format_->name : name_of(dtype_), rows_, cols_,
         1e-6 * double(bytes));
}

Matrix::Matrix(const PackedFormat& format, std::int64_t rows, std::int64_t cols)
    : format_(&format), rows_(rows), cols_(cols) {
  if (cols % format.record() != 0)
    fail("{} columns are no whole number of {} blocks ({} each)", cols, format.name, format.record());
  allocate();
}

Matrix::Matrix(DType dtype, std::int64_t rows, std::int64_t cols) : dtype_(dtype), rows_(rows), cols_(cols) {
  allocate();
  if (rows % kPanel != 0)
    std::memset(data_.get() + (panels() - 1) * panel_bytes(), 0, static_cast<std::size_t>(panel_bytes()));
  if (cols % 2 != 0) {
    // The last pair of columns: packing then writes the first of the two only.
    const std::int64_t tail = 2 * kPanel * static_cast<std::int64_t>(size_of(dtype));
    for (std::int64_t p = 1; p <= panels(); ++p) {
      std::memset(data_.get() + p * panel_bytes() - tail, 0, static_cast<std::size_t>(tail));
    }
  }
}

void Matrix::check_panels(std::int64_t first, std::int64_t count) const {
  if (first % kPanel != 0 || (count % kPanel != 0 && first + count != rows_))
    fail("rows {} to {} of a quantized matrix are no whole panels of {}", first, first + count - 1, kPanel);
}

void Matrix::pack_blocks(std::int64_t first, std::int64_t count, const BlockAt& block_at) {
  check_panels(first, count);
  for (std::int64_t done = 0; done < count; done += kPanel) {
    const int n = static_cast<int>(std::min<std::int64_t>(kPanel, count - done));
    std::byte* to = data_.get() + (first + done) / kPanel * panel_bytes();
    for (std::int64_t col = 0; col < cols_; col += format_->record(), to += format_->record_bytes())
      pack_record(
          *format_, n, [&](int row, CodeBlock& out) { block_at(done + row, col, out); }, to);
  }
}

void Matrix::pack_quantized(std::int64_t first, std::int64_t count, const std::byte* src, std::int64_t stride) {
  check_panels(first, count);
  for (std::int64_t row = first; row < first + count; row += kPanel, src += kPanel * stride) {
    const int n = static_cast<int>(std::min<std::int64_t>(kPanel, first + count - row));
    std::byte* to = data_.get() + row / kPanel * panel_bytes();
    for (std::int64_t r = 0; r < cols_ / format_->record(); ++r, to += format_->record_bytes())
      pack_record(*format_, src + r * format_->stored->block_bytes, stride, n, to);
  }
}

void Matrix::pack_rows(std::int64_t first, std::int64_t count, const void* src, std::int64_t src_stride_bytes) {
  if (format_) return pack_quantized(first, count, static_cast<const std::byte*>(src), src_stride_bytes);
  const auto size = static_cast<std::int64_t>(size_of(dtype_));
  const auto* from = static_cast<const std::byte*>(src);
  for (std::int64_t row = first; row < first + count;) {
    std::byte* to = data_.get() + row / kPanel * panel_bytes();
    const bool whole = row % kPanel == 0 && row + kPanel <= first + count;
    const std::int64_t n = whole ? kPanel : 1;
    // Columns packed by the fast way; the rest (an odd last one of 16 bits, every one of a single row) go one by one.
    std::int64_t packed = 0;
    if (whole && size == 1) {
      pack_panel_1(from, src_stride_bytes, cols_, to);
      packed = cols_;
    } else if (whole) {
      const std::int64_t units = cols_ * size / 4;
      pack_panel_4(from, src_stride_bytes, units, to);
      packed = units * 4 / size;
    }
    for (std::int64_t r = 0; r < n; ++r) {
      for (std::int64_t c = packed; c < cols_; ++c) {
        std::memcpy(to + offset_in_panel(dtype_, row % kPanel + r, c), from + r * src_stride_bytes + c * size,
                    static_cast<std::size_t>(size));
      }
      if (dtype_ == DType::f8_e4m3 && any_nan_code(from + r * src_stride_bytes, cols_)) {
        std::atomic_ref<bool>(has_nan_codes_).store(true, std::memory_order_relaxed);
      }
    }
    row += n;
    from += n * src_stride_bytes;
  }
}

void Matrix::set_scales(BlockScales scales) {
  if (scales.empty()) {
    scales_ = {};
    return;
  }
  if (scales.block_rows <= 0 || scales.block_cols <= 0) {
    fail("scale blocks of {} x {} are impossible", scales.block_rows, scales.block_cols);
  }
  const std::int64_t down = (rows_ + scales.block_rows - 1) / scales.block_rows;
  const std::int64_t across = (cols_ + scales.block_cols - 1) / scales.block_cols;
  if (static_cast<std::int64_t>(scales.values.size()) != down * across) {
    fail("a matrix of {} x {} in blocks of {} x {} needs {} scales, not {}", rows_, cols_, scales.block_rows,
         scales.block_cols, down * across, scales.values.size());
  }
  if (dtype_ != DType::f8_e4m3) fail("block scales go with F8_E4M3, not with {}", name_of(dtype_));
  scales_ = std::move(scales);
}

std::span<const std::byte> Matrix::packed() const {
  return {data_.get(), empty() ? 0 : static_cast<std::size_t>(panels() * panel_bytes())};
}

void Matrix::set_packed(std::span<const std::byte> bytes) {
  if (bytes.size() != packed().size())
    fail("{} bytes are no packed matrix of {} x {}, which has {}", bytes.size(), rows_, cols_, packed().size());
  if (!bytes.empty()) std::memcpy(data_.get(), bytes.data(), bytes.size());
  has_nan_codes_ = !format_ && dtype_ == DType::f8_e4m3 && any_nan_code(data_.get(), std::ssize(bytes));
}

float Matrix::at(std::int64_t row, std::int64_t col) const {
  if (format_) {
    if (!order_.empty()) col = std::find(order_.begin(), order_.end(), col) - order_.begin();
    const std::int64_t record = col / format_->record();
    float worth[ExpandedRecord::kSteps * PackedFormat::kStep];
    dequantize_row(*format_, panel(row / kPanel) + record * format_->record_bytes(), static_cast<int>(row % kPanel),
                   format_->record(), worth);
    return worth[col % format_->record()];
  }
  const float v = element_to_f32(dtype_, panel(row / kPanel) + offset_in_panel(dtype_, row % kPanel, col));
  if (scales_.empty()) return v;
  const std::int64_t across = (cols_ + scales_.block_cols - 1) / scales_.block_cols;
  return v * scales_.values[static_cast<std::size_t>(row / scales_.block_rows * across + col / scales_.block_cols)];
}

void Matrix::unpack_row(std::int64_t row, float* out) const {
  if (format_) {
    dequantize_row(*format_, panel(row / kPanel), static_cast<int>(row % kPanel), cols_, out);
    if (order_.empty()) return;
    const std::vector<float> packed(out, out + cols_);
    for (std::size_t c = 0; c < packed.size(); ++c) out[order_[c]] = packed[c];
    return;
  }
  const std::byte* from = panel(row / kPanel) + offset_in_panel(dtype_, row % kPanel, 0);
  if (size_of(dtype_) == 2) {
    for (std::int64_t c = 0; c < cols_; ++c) out[c] = element_to_f32(dtype_, from + c / 2 * 64 + c % 2 * 2);
  } else {
    const std::int64_t step = kPanel * static_cast<std::int64_t>(size_of(dtype_));
    for (std::int64_t c = 0; c < cols_; ++c) out[c] = element_to_f32(dtype_, from + c * step);
  }
  if (scales_.empty()) return;
  const std::int64_t across = (cols_ + scales_.block_cols - 1) / scales_.block_cols;
  const float* scale = scales_.values.data() + row / scales_.block_rows * across;
  for (std::int64_t c = 0; c < cols_; ++c) out[c] *= scale[c / scales_.block_cols];
}

void Matrix::copy_row(std::int64_t row, std::byte* out) const {
  const std::size_t size = size_of(dtype_);
  const std::byte* from = panel(row / kPanel);
  for (std::int64_t c = 0; c < cols_; ++c, out += size)
    std::memcpy(out, from + offset_in_panel(dtype_, row % kPanel, c), size);
}

Matrix Matrix::clone() const {
  Matrix copy = format_ ? Matrix(*format_, rows_, cols_) : Matrix(dtype_, rows_, cols_);
  std::memcpy(copy.data_.get(), data_.get(), static_cast<std::size_t>(panels() * panel_bytes()));
  copy.scales_ = scales_;
  copy.order_ = order_;
  copy.has_nan_codes_ = has_nan_codes_;
  return copy;
}

void Matrix::set_placed(std::shared_ptr<const void> placed) {
  placed_ = std::move(placed);
  data_.reset();
}

std::int64_t Matrix::bytes() const {
  return panels() * panel_bytes() +
         static_cast<std::int64_t>(scales_.values.size() * sizeof(float) + order_.size() * sizeof(std::int32_t));
}

}  // namespace shoal
