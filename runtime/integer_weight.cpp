#include "runtime/integer_weight.h"

#include <algorithm>
#include <array>
#include <cstring>

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
    return;
  }
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

void IntegerWeight::load_scales() {
  switch (form_) {
    case Form::int8:
      return load_int8_scales();
    case Form::compressed:
      return load_compressed_scales();
    case Form::awq:
    case Form::gptq:
      return load_group_scales();
  }
}

void IntegerWeight::load_int8_scales() {
  if (checkpoint_.find(prefix_ + "weight_scale_inv")) {
    scale_rows_ = quantization_.block_rows;
    scale_cols_ = quantization_.block_cols;
    if (scale_rows_ < 1 || scale_cols_ < 1) {
      fail("{}: tensor {}weight has scales by blocks, but config.json gives no weight_block_size",
           checkpoint_.files().front().string(), prefix_);
    }
    scales_across_ = ceil_div(cols_, scale_cols_);
    scales_ =
        checkpoint_.read_floats(part("weight_scale_inv", {ceil_div(rows_, scale_rows_), scales_across_}, nullptr));
    return;
  }
  scale_cols_ = cols_;
  const TensorInfo* scale = checkpoint_.find(prefix_ + "weight_scale");
  scales_ = checkpoint_.read_floats(scale && scale->shape.size() == 1 ? part("weight_scale", {rows_}, nullptr)
                                                                      : part("weight_scale", {rows_, 1}, nullptr));
}

/// AWQ's and GPTQ's, which come with the groups as rows.
void IntegerWeight::load_group_scales() {
  scale_cols_ = quantization_.group_size > 0 ? quantization_.group_size : cols_;
  scales_across_ = ceil_div(cols_, scale_cols_);
  const std::int64_t groups = scales_across_;
  const auto by_group = checkpoint_.read_floats(part("scales", {groups, rows_}, nullptr));
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
      zeros_[to] = static_cast<std::int16_t>(zero);
    }
  }
  if (form_ == Form::awq || !checkpoint_.find(prefix_ + "g_idx")) return;
  group_of_ = words(part("g_idx", {cols_}, "I32"));
  for (const std::int32_t g : group_of_) {
    if (g < 0 || g >= groups) {
      fail("{}: tensor {}g_idx names group {} of {}", checkpoint_.files().front().string(), prefix_, g, groups);
    }
  }
}

void IntegerWeight::load_compressed_scales() {
  scale_cols_ = quantization_.group_size > 0 ? quantization_.group_size : cols_;
  scales_across_ = ceil_div(cols_, scale_cols_);
  scales_ = checkpoint_.read_floats(part("weight_scale", {rows_, scales_across_}, nullptr));
  if (checkpoint_.find(prefix_ + "weight_g_idx")) {
    fail("{}: tensor {}weight_g_idx: reordered groups are not supported", checkpoint_.files().front().string(),
         prefix_);
  }
  // Codes are stored as value + 2^(bits - 1), zeros too.
  zero_ = 1 << (bits_ - 1);
  if (!checkpoint_.find(prefix_ + "weight_zero_point")) return;
  const auto packed = words(part("weight_zero_point", {ceil_div(rows_, per_word()), scales_across_}, "I32"));
  zeros_.resize(scales_.size());
  for (std::int64_t r = 0; r < rows_; ++r) {
    for (std::int64_t g = 0; g < scales_across_; ++g) {
      const std::int32_t word = packed[static_cast<std::size_t>(r / per_word() * scales_across_ + g)];
      zeros_[static_cast<std::size_t>(r * scales_across_ + g)] =
          static_cast<std::int16_t>(code(word, bits_, r % per_word()));
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

int IntegerWeight::code_at(const std::vector<std::byte>& strip, std::int64_t count, std::int64_t row,
                           std::int64_t col) const {
  const auto word = [&](std::int64_t index) {
    std::int32_t value;
    std::memcpy(&value, strip.data() + index * 4, 4);
    return value;
  };
  switch (form_) {
    case Form::int8:
      return static_cast<std::int8_t>(strip[static_cast<std::size_t>(row * cols_ + col)]);
    case Form::compressed:
      return code(word(row * ceil_div(cols_, per_word()) + col / per_word()), bits_, col % per_word());
    case Form::awq:
      return code(word(col * ceil_div(count, 8) + row / 8), bits_, kAwqPlace[static_cast<std::size_t>(row % 8)]);
    case Form::gptq:
      return code(word(col / per_word() * count + row), bits_, col % per_word());
  }
  return 0;
}

void IntegerWeight::read(std::int64_t first, std::int64_t count, std::vector<float>& out) const {
  std::call_once(loaded_, [&] { const_cast<IntegerWeight*>(this)->load_scales(); });
  const auto strip = read_codes(first, count);
  out.resize(static_cast<std::size_t>(count * cols_));
  for (std::int64_t r = 0; r < count; ++r) {
    const std::int64_t scale_row = (first + r) / scale_rows_ * scales_across_;
    for (std::int64_t c = 0; c < cols_; ++c) {
      const std::int64_t group = group_of_.empty() ? c / scale_cols_ : group_of_[static_cast<std::size_t>(c)];
      const auto block = static_cast<std::size_t>(scale_row + group);
      const int zero = zeros_.empty() ? zero_ : zeros_[block];
      out[static_cast<std::size_t>(r * cols_ + c)] =
          static_cast<float>(code_at(strip, count, r, c) - zero) * scales_[block];
    }
  }
}

}  // namespace shoal
