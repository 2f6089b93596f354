#include "runtime/integer_weight.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <optional>

#include "base/error.h"

namespace shoal {
namespace {

constexpr std::int64_t kStagingBytes = 4 << 20;
/// AWQ's order of eight outputs in a word: output i is the kAwqPlace[i]-th four bits.
constexpr std::array<int, 8> kAwqPlace = {0, 4, 1, 5, 2, 6, 3, 7};

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// "x.weight" -> "x."
std::string prefix_of(const std::string& name) {
  constexpr std::string_view suffix = "weight";
  return name.ends_with(".weight") ? name.substr(0, name.size() - suffix.size()) : std::string();
}

/// With records as wide as they can be where `width` columns share a scale; null where not even 32 do.
const PackedFormat* format_of_records(int bits, Scales scales, std::int64_t width, bool zeros, int zero) {
  const auto columns = static_cast<int>(std::gcd<std::int64_t>(width, 256));
  if (columns < PackedFormat::kStep) return nullptr;
  return &integer_format(bits, scales, columns, zeros ? std::nullopt : std::optional(zero));
}

int code(std::int32_t word, int bits, std::int64_t position) {
  return static_cast<int>((static_cast<std::uint32_t>(word) >> (bits * position)) & ((1u << bits) - 1));
}

}  // namespace

std::vector<std::string> IntegerWeight::parts(const Checkpoint& checkpoint, const std::string& name) {
  const std::string p = prefix_of(name);
  std::vector<std::string> found;
  if (p.empty()) return found;
  const auto take = [&](std::initializer_list<const char*> suffixes) {
    for (const char* suffix : suffixes) {
      if (checkpoint.find(p + suffix)) found.push_back(p + suffix);
    }
  };
  const bool scaled = checkpoint.find(p + "weight_scale") || checkpoint.find(p + "weight_scale_inv");
  if (const TensorInfo* plain = checkpoint.find(name); plain && plain->type == "I8" && scaled) {
    take({"weight", "weight_scale", "weight_scale_inv"});
    if (found.size() == 1) found.clear();  // integers without a scale mean nothing
  } else if (checkpoint.find(p + "qweight")) {
    take({"qweight", "qzeros", "scales", "g_idx"});
  } else if (checkpoint.find(p + "weight_packed")) {
    take({"weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"});
  }
  return found;
}

IntegerWeight::IntegerWeight(const Checkpoint& checkpoint, std::string prefix, std::int64_t rows, std::int64_t cols,
                             const WeightQuantization& quantization)
    : checkpoint_(checkpoint), prefix_(std::move(prefix)), rows_(rows), cols_(cols), quantization_(quantization) {
  if (checkpoint.find(prefix_ + "weight")) {
    codes_ = &part("weight", {rows, cols}, "I8");
  } else {
    bits_ = quantization.bits;
    if (checkpoint.find(prefix_ + "weight_packed")) {
      form_ = Form::compressed;
      codes_ = &part("weight_packed", {rows, ceil_div(cols, per_word())}, "I32");
    } else if (quantization.method == "awq") {
      form_ = Form::awq;
      codes_ = &part("qweight", {cols, rows / per_word()}, "I32");
    } else {
      form_ = Form::gptq;
      codes_ = &part("qweight", {cols / per_word(), rows}, "I32");
    }
  }
  find_scales();
  if (form_ == Form::gptq && checkpoint.find(prefix_ + "g_idx")) find_order();
}

std::shared_ptr<const IntegerWeight> IntegerWeight::find(const Checkpoint& checkpoint, const std::string& name,
                                                         std::int64_t rows, std::int64_t cols,
                                                         const WeightQuantization& quantization) {
  if (parts(checkpoint, name).empty()) return nullptr;
  return std::shared_ptr<const IntegerWeight>(new IntegerWeight(checkpoint, prefix_of(name), rows, cols, quantization));
}

const TensorInfo& IntegerWeight::part(const char* suffix, std::initializer_list<std::int64_t> shape,
                                      const char* type) const {
  const TensorInfo& tensor = checkpoint_.require(prefix_ + suffix, std::vector<std::int64_t>(shape));
  if (type && tensor.type != type) {
    fail("{}: tensor {} has the type {}, and must be {}",
         checkpoint_.files()[static_cast<std::size_t>(tensor.file)].string(), tensor.name, tensor.type, type);
  }
  return tensor;
}

std::vector<std::int32_t> IntegerWeight::words(const TensorInfo& tensor) const {
  std::vector<std::int32_t> values(tensor.bytes / 4);
  checkpoint_.read(tensor, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

void IntegerWeight::find_scales() {
  const std::string file = checkpoint_.files().front().string();
  if (form_ == Form::int8 && checkpoint_.find(prefix_ + "weight_scale_inv")) {
    scale_rows_ = quantization_.block_rows;
    scale_cols_ = quantization_.block_cols;
    if (scale_rows_ < 1 || scale_cols_ < 1)
      fail("{}: tensor {}weight has scales by blocks, but config.json gives no weight_block_size", file, prefix_);
    scales_across_ = ceil_div(cols_, scale_cols_);
    scale_tensor_ = &part("weight_scale_inv", {ceil_div(rows_, scale_rows_), scales_across_}, nullptr);
    return;
  }
  if (form_ == Form::int8) {
    scale_cols_ = cols_;
    const TensorInfo* scale = checkpoint_.find(prefix_ + "weight_scale");
    scale_tensor_ = scale && scale->shape.size() == 1 ? &part("weight_scale", {rows_}, nullptr)
                                                      : &part("weight_scale", {rows_, 1}, nullptr);
    return;
  }
  scale_cols_ = quantization_.group_size > 0 ? quantization_.group_size : cols_;
  scales_across_ = ceil_div(cols_, scale_cols_);
  if (form_ == Form::compressed) {
    scale_tensor_ = &part("weight_scale", {rows_, scales_across_}, nullptr);
    if (checkpoint_.find(prefix_ + "weight_g_idx"))
      fail("{}: tensor {}weight_g_idx: reordered groups are not supported", file, prefix_);
    // Codes are stored as value + 2^(bits - 1), zeros too.
    zero_ = 1 << (bits_ - 1);
    has_zeros_ = checkpoint_.find(prefix_ + "weight_zero_point") != nullptr;
    return;
  }
  scale_tensor_ = &part("scales", {scales_across_, rows_}, nullptr);
  has_zeros_ = true;
}

void IntegerWeight::find_order() {
  group_of_ = words(part("g_idx", {cols_}, "I32"));
  std::vector<std::int64_t> members(static_cast<std::size_t>(scales_across_), 0);
  for (const std::int32_t g : group_of_) {
    if (g < 0 || g >= scales_across_)
      fail("{}: tensor {}g_idx names group {} of {}", checkpoint_.files().front().string(), prefix_, g, scales_across_);
    ++members[static_cast<std::size_t>(g)];
  }
  if (std::is_sorted(group_of_.begin(), group_of_.end())) {
    bool regular = true;
    for (std::int64_t c = 0; c < cols_; ++c) regular &= group_of_[static_cast<std::size_t>(c)] == c / scale_cols_;
    if (regular) group_of_.clear();
    return;
  }
  for (std::int64_t g = 0; g < scales_across_; ++g) {
    const std::int64_t whole = std::min(scale_cols_, cols_ - g * scale_cols_);
    if (members[static_cast<std::size_t>(g)] != whole) return;
  }
  order_.resize(group_of_.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](std::int32_t a, std::int32_t b) {
    return group_of_[static_cast<std::size_t>(a)] < group_of_[static_cast<std::size_t>(b)];
  });
}

void IntegerWeight::load() const {
  std::call_once(loaded_, [&] { load_scales(); });
}

void IntegerWeight::load_scales() const {
  if (form_ == Form::awq || form_ == Form::gptq) return load_group_scales();
  scales_ = checkpoint_.read_floats(*scale_tensor_);
  if (has_zeros_) load_compressed_zeros();
}

/// AWQ's and GPTQ's, which come with the groups as rows.
void IntegerWeight::load_group_scales() const {
  const std::int64_t groups = scales_across_;
  const auto by_group = checkpoint_.read_floats(*scale_tensor_);
  const auto packed = words(part("qzeros", {groups, rows_ / per_word()}, "I32"));
  scales_.resize(by_group.size());
  zeros_.resize(by_group.size());
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < rows_; ++r) {
      const auto to = static_cast<std::size_t>(r * groups + g);
      scales_[to] = by_group[static_cast<std::size_t>(g * rows_ + r)];
      const std::int32_t word = packed[static_cast<std::size_t>(g * (rows_ / per_word()) + r / per_word())];
      const std::int64_t place = form_ == Form::awq ? kAwqPlace[static_cast<std::size_t>(r % 8)] : r % per_word();
      // GPTQ's first format stores zero - 1 in as many bits.
      const int zero = (code(word, bits_, place) + quantization_.zero_offset) & ((1 << bits_) - 1);
      zeros_[to] = static_cast<std::uint8_t>(zero);
    }
  }
}

void IntegerWeight::load_compressed_zeros() const {
  const auto packed = words(part("weight_zero_point", {ceil_div(rows_, per_word()), scales_across_}, "I32"));
  zeros_.resize(scales_.size());
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t g = 0; g < scales_across_; ++g) {
      const std::int32_t word = packed[static_cast<std::size_t>(r / per_word() * scales_across_ + g)];
      zeros_[static_cast<std::size_t>(r * scales_across_ + g)] =
          static_cast<std::uint8_t>(code(word, bits_, r % per_word()));
    }
  }
}

std::int64_t IntegerWeight::rows_at_a_time() const {
  const std::int64_t fitting = kStagingBytes * 8 / (cols_ * bits_) / 16 * 16;
  return std::clamp<std::int64_t>(fitting, 16, std::max<std::int64_t>(16, rows_));
}

std::vector<std::byte> IntegerWeight::read_codes(std::int64_t first, std::int64_t count) const {
  // Pieces of the file, `lines` of `bytes` each, `stride` apart.
  std::int64_t lines = 1, from = 0, bytes = 0, stride = 0;
  switch (form_) {
    case Form::int8:
      from = first * cols_;
      bytes = count * cols_;
      break;
    case Form::compressed:
      from = first * ceil_div(cols_, per_word()) * 4;
      bytes = count * ceil_div(cols_, per_word()) * 4;
      break;
    case Form::awq:
      lines = cols_;
      from = first / per_word() * 4;
      bytes = ceil_div(count, per_word()) * 4;
      stride = rows_ / per_word() * 4;
      break;
    case Form::gptq:
      lines = cols_ / per_word();
      from = first * 4;
      bytes = count * 4;
      stride = rows_ * 4;
      break;
  }
  std::vector<std::byte> strip(static_cast<std::size_t>(lines * bytes));
  for (std::int64_t line = 0; line < lines; ++line) {
    checkpoint_.read(*codes_, static_cast<std::uint64_t>(from + line * stride),
                     std::span(strip).subspan(static_cast<std::size_t>(line * bytes), static_cast<std::size_t>(bytes)));
  }
  return strip;
}

void IntegerWeight::row_codes(const std::vector<std::byte>& strip, std::int64_t count, std::int64_t row,
                              std::uint8_t* codes) const {
  const std::uint32_t mask = (1u << bits_) - 1;
  const auto word = [&](std::int64_t index) {
    std::uint32_t value;
    std::memcpy(&value, strip.data() + index * 4, 4);
    return value;
  };
  const std::int64_t n = per_word();
  switch (form_) {
    case Form::int8: {
      const std::byte* from = strip.data() + row * cols_;
      for (std::int64_t c = 0; c < cols_; ++c) codes[c] = static_cast<std::uint8_t>(from[c]) ^ 0x80;
      return;
    }
    case Form::compressed:
      for (std::int64_t w = 0; w < ceil_div(cols_, n); ++w) {
        std::uint32_t value = word(row * ceil_div(cols_, n) + w);
        for (std::int64_t c = w * n; c < std::min((w + 1) * n, cols_); ++c, value >>= bits_)
          codes[c] = static_cast<std::uint8_t>(value & mask);
      }
      return;
    case Form::awq: {
      const std::int64_t stride = ceil_div(count, 8);
      const int shift = 4 * kAwqPlace[static_cast<std::size_t>(row % 8)];
      for (std::int64_t c = 0; c < cols_; ++c)
        codes[c] = static_cast<std::uint8_t>(word(c * stride + row / 8) >> shift & mask);
      return;
    }
    case Form::gptq:
      for (std::int64_t w = 0; w < cols_ / n; ++w) {
        std::uint32_t value = word(w * count + row);
        for (std::int64_t c = w * n; c < (w + 1) * n; ++c, value >>= bits_)
          codes[c] = static_cast<std::uint8_t>(value & mask);
      }
      return;
  }
}

void IntegerWeight::read(std::int64_t first, std::int64_t count, std::vector<float>& out) const {
  load();
  const auto strip = read_codes(first, count);
  out.resize(static_cast<std::size_t>(count * cols_));
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(cols_));
  for (std::int64_t r = 0; r < count; ++r) {
    row_codes(strip, count, r, codes.data());
    for (std::int64_t c = 0; c < cols_; ++c) {
      const std::int64_t group = group_of_.empty() ? c / scale_cols_ : group_of_[static_cast<std::size_t>(c)];
      const auto at = static_cast<std::size_t>(scale_at(first + r, group));
      const int zero = has_zeros_ ? zeros_[at] : zero_;
      out[static_cast<std::size_t>(r * cols_ + c)] =
          static_cast<float>(codes[static_cast<std::size_t>(c)] - zero) * scales_[at];
    }
  }
}

// ---- As packed matrices ----

Scales IntegerWeight::kept_scales() const {
  if (scale_tensor_->type == "F16") return Scales::half;
  return scale_tensor_->type == "BF16" ? Scales::bfloat : Scales::single;
}

const PackedFormat* IntegerWeight::packed(Slice columns) const {
  std::int64_t width = columns.count;
  const bool whole = columns.first == 0 && columns.count == cols_;
  if (!group_of_.empty() && (order_.empty() || !whole)) return nullptr;
  if (scale_cols_ < cols_) width = std::gcd(std::gcd(columns.first, width), scale_cols_);
  return format_of_records(bits_, kept_scales(), width, has_zeros_, zero_);
}

const PackedFormat* IntegerWeight::packed_transpose(Slice rows) const {
  if (form_ != Form::int8) return nullptr;
  const std::int64_t width = std::gcd(std::gcd(rows.first, rows.count), scale_rows_);
  return format_of_records(bits_, kept_scales(), width, has_zeros_, zero_);
}

void IntegerWeight::set_head(std::int64_t row, std::int64_t group, CodeBlock& block) const {
  const auto at = static_cast<std::size_t>(scale_at(row, group));
  switch (kept_scales()) {
    case Scales::half:
      block.d = f32_to_f16(scales_[at]);
      break;
    case Scales::bfloat:
      block.d = f32_to_bf16(scales_[at]);
      break;
    default:
      block.d = std::bit_cast<std::uint32_t>(scales_[at]);
  }
  if (has_zeros_) block.zero = static_cast<std::uint8_t>(zeros_[at]);
}

void IntegerWeight::pack(std::int64_t first, std::int64_t count, Slice columns, std::int64_t to_first,
                         Matrix& to) const {
  load();
  const auto strip = read_codes(first, count);
  const int record = to.format()->record();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(Matrix::kPanel * cols_)), stored;
  for (std::int64_t panel = 0; panel < count; panel += Matrix::kPanel) {
    const std::int64_t rows = std::min<std::int64_t>(Matrix::kPanel, count - panel);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::uint8_t* row = codes.data() + r * cols_;
      row_codes(strip, count, panel + r, row);
      if (order_.empty()) continue;
      stored.assign(row, row + cols_);
      for (std::int64_t c = 0; c < cols_; ++c)
        row[c] = stored[static_cast<std::size_t>(order_[static_cast<std::size_t>(c)])];
    }
    to.pack_blocks(to_first + panel, rows, [&](std::int64_t r, std::int64_t col, CodeBlock& block) {
      std::memcpy(block.code, codes.data() + r * cols_ + columns.first + col, static_cast<std::size_t>(record));
      set_head(first + panel + r, (columns.first + col) / scale_cols_, block);
    });
  }
}

void IntegerWeight::pack_transpose(Slice rows, Matrix& to) const {
  load();
  const auto strip = read_codes(rows.first, rows.count);
  const int record = to.format()->record();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows.count * cols_));
  for (std::int64_t r = 0; r < rows.count; ++r) row_codes(strip, rows.count, r, codes.data() + r * cols_);
  for (std::int64_t panel = 0; panel < cols_; panel += Matrix::kPanel) {
    const std::int64_t n = std::min<std::int64_t>(Matrix::kPanel, cols_ - panel);
    to.pack_blocks(panel, n, [&](std::int64_t c, std::int64_t row, CodeBlock& block) {
      for (int i = 0; i < record; ++i) block.code[i] = codes[static_cast<std::size_t>((row + i) * cols_ + panel + c)];
      set_head(rows.first + row, (panel + c) / scale_cols_, block);
    });
  }
}

}  // namespace shoal
