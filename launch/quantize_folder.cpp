// Hugging Face folders with quantized linear weights: FP8 as R1 is published, INT8 with a scale a row, INT4 with a
// scale a group (compressed-tensors' pack-quantized form).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <optional>

#include "base/error.h"
#include "kernels/dtype.h"
#include "kernels/formats/fit.h"
#include "launch/quantize_gguf.h"
#include "planner/tensor_names.h"
#include "runtime/gguf_names.h"
#include "runtime/importance.h"
#include "runtime/row_reader.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::int64_t kBlock = 128;  // R1's
constexpr std::uint64_t kShardBytes = 5'000'000'000;

std::uint64_t u64(std::int64_t n) { return static_cast<std::uint64_t>(n); }

/// A tensor of the new folder.
struct Stored {
  std::string name, type;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes;
};

/// One way to store a linear weight: which tensors stand for it, and what a strip of rows becomes in each.
class WeightForm {
 public:
  virtual ~WeightForm() = default;
  virtual std::vector<Stored> tensors(const std::string& prefix, std::int64_t rows, std::int64_t cols) const = 0;
  /// Strips begin at multiples of this many rows.
  virtual std::int64_t strip_rows() const = 0;
  /// Bytes of each tensor that a strip fills.
  virtual std::vector<std::int64_t> strip_bytes(std::int64_t rows, std::int64_t cols) const = 0;
  /// `importance`: of the columns; null: alike.
  virtual StorageError encode(const std::vector<float>& x, std::int64_t rows, std::int64_t cols,
                              const float* importance, std::byte* out) const = 0;
  virtual ordered_json config() const = 0;
};

void count(StorageError& error, float value, float stored) {
  const double rest = static_cast<double>(stored) - static_cast<double>(value);
  error.squared_error += rest * rest;
  error.squared_values += static_cast<double>(value) * static_cast<double>(value);
}

class Fp8 final : public WeightForm {
 public:
  std::vector<Stored> tensors(const std::string& p, std::int64_t rows, std::int64_t cols) const override {
    const std::int64_t down = (rows + kBlock - 1) / kBlock, across = (cols + kBlock - 1) / kBlock;
    return {{p + "weight", "F8_E4M3", {rows, cols}, u64(rows * cols)},
            {p + "weight_scale_inv", "F32", {down, across}, u64(down * across * 4)}};
  }
  std::int64_t strip_rows() const override { return kBlock; }
  std::vector<std::int64_t> strip_bytes(std::int64_t rows, std::int64_t cols) const override {
    return {rows * cols, (cols + kBlock - 1) / kBlock * 4};
  }
  StorageError encode(const std::vector<float>& x, std::int64_t rows, std::int64_t cols, const float*,
                      std::byte* out) const override {
    StorageError error;
    for (std::int64_t first = 0; first < cols; first += kBlock) {
      const std::int64_t end = std::min(cols, first + kBlock);
      float largest = 0;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = first; c < end; ++c)
          largest = std::max(largest, std::abs(x[static_cast<std::size_t>(r * cols + c)]));
      const float scale = std::max(largest, 1e-12f) / 448;
      std::memcpy(out + rows * cols + first / kBlock * 4, &scale, 4);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = first; c < end; ++c) {
          const float value = x[static_cast<std::size_t>(r * cols + c)];
          const std::uint8_t code = f32_to_f8_e4m3(value / scale);
          out[r * cols + c] = std::byte{code};
          count(error, value, f8_e4m3_to_f32(code) * scale);
        }
    }
    return error;
  }
  ordered_json config() const override {
    return {{"activation_scheme", "dynamic"},
            {"fmt", "e4m3"},
            {"quant_method", "fp8"},
            {"weight_block_size", {kBlock, kBlock}}};
  }
};

class Int8 final : public WeightForm {
 public:
  std::vector<Stored> tensors(const std::string& p, std::int64_t rows, std::int64_t cols) const override {
    return {{p + "weight", "I8", {rows, cols}, u64(rows * cols)},
            {p + "weight_scale", "F32", {rows, 1}, u64(rows * 4)}};
  }
  std::int64_t strip_rows() const override { return 16; }
  std::vector<std::int64_t> strip_bytes(std::int64_t rows, std::int64_t cols) const override {
    return {rows * cols, rows * 4};
  }
  StorageError encode(const std::vector<float>& x, std::int64_t rows, std::int64_t cols, const float*,
                      std::byte* out) const override {
    StorageError error;
    for (std::int64_t r = 0; r < rows; ++r) {
      const float* row = x.data() + r * cols;
      float largest = 0;
      for (std::int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::abs(row[c]));
      const float scale = largest / 127;
      std::memcpy(out + rows * cols + r * 4, &scale, 4);
      for (std::int64_t c = 0; c < cols; ++c) {
        const int q = formats::nearest_level(row[c], scale, -127, 127);
        out[r * cols + c] = static_cast<std::byte>(q);
        count(error, row[c], static_cast<float>(q) * scale);
      }
    }
    return error;
  }
  ordered_json config() const override { return {{"activation_scheme", "dynamic"}, {"quant_method", "w8a8_int8"}}; }
};

class Int4 final : public WeightForm {
 public:
  explicit Int4(std::int64_t group) : group_(group) {}
  std::vector<Stored> tensors(const std::string& p, std::int64_t rows, std::int64_t cols) const override {
    if (cols % group_) fail("tensor {}weight: rows of {} elements are not whole groups of {}", p, cols, group_);
    return {{p + "weight_packed", "I32", {rows, cols / 8}, u64(rows * cols / 2)},
            {p + "weight_scale", "BF16", {rows, cols / group_}, u64(rows * cols / group_ * 2)},
            {p + "weight_shape", "I64", {2}, 16}};
  }
  std::int64_t strip_rows() const override { return 16; }
  std::vector<std::int64_t> strip_bytes(std::int64_t rows, std::int64_t cols) const override {
    return {rows * cols / 2, rows * cols / group_ * 2};
  }
  StorageError encode(const std::vector<float>& x, std::int64_t rows, std::int64_t cols, const float* importance,
                      std::byte* out) const override {
    StorageError error;
    std::byte* scales = out + rows * cols / 2;
    for (std::int64_t first = 0; first < rows * cols; first += group_, scales += 2) {
      const float* values = x.data() + first;
      const std::uint16_t scale = f32_to_bf16(fit(values, importance ? importance + first % cols : nullptr));
      std::memcpy(scales, &scale, 2);
      const float d = bf16_to_f32(scale);
      for (std::int64_t i = 0; i < group_; i += 8) {
        std::uint32_t word = 0;
        for (std::int64_t j = 0; j < 8; ++j) {
          const int q = formats::nearest_level(values[i + j], d, -8, 7);
          word |= static_cast<std::uint32_t>(q + 8) << (4 * j);
          count(error, values[i + j], static_cast<float>(q) * d);
        }
        std::memcpy(out + (first + i) / 2, &word, 4);
      }
    }
    return error;
  }
  ordered_json config() const override {
    return {{"config_groups",
             {{"group_0",
               {{"targets", ordered_json::array({"Linear"})},
                {"weights",
                 {{"num_bits", 4},
                  {"type", "int"},
                  {"symmetric", true},
                  {"strategy", "group"},
                  {"group_size", group_}}}}}}},
            {"format", "pack-quantized"},
            {"quant_method", "compressed-tensors"},
            {"quantization_status", "compressed"}};
  }

 private:
  /// The scale's sign is free elsewhere, but readers of this form want it positive.
  float fit(const float* values, const float* weights) const {
    const int n = static_cast<int>(group_);
    const float scale = formats::fit_scale(values, weights, n, -8, 7);
    return scale >= 0 ? scale : std::abs(formats::fit_scale(values, weights, n, -7, 7));
  }
  std::int64_t group_;
};

std::unique_ptr<WeightForm> form_of(const QuantizeOptions& options) {
  if (options.type == "FP8") return std::make_unique<Fp8>();
  if (options.type == "INT8") return std::make_unique<Int8>();
  const int group = options.group_size.value_or(128);
  if (group < 8 || group > 256 || group % 8)
    throw Error(fmt::format("--group-size {} must be a multiple of 8 up to 256", group), ExitCode::usage);
  return std::make_unique<Int4>(group);
}

/// As R1 does it: every projection of the layers, not the MTP layer's input one, nor embedding, head, router, norms.
bool is_quantized(const ExpectedTensor& tensor) {
  return tensor.shape.size() == 2 && tensor.name.ends_with("_proj.weight") && !tensor.name.ends_with("eh_proj.weight");
}
bool is_kv_a(const ExpectedTensor& tensor) { return tensor.name.ends_with("kv_a_proj_with_mqa.weight"); }

/// One tensor of the model on its way.
struct Item {
  ExpectedTensor tensor;
  const TensorInfo* copied = nullptr;  // goes over as it is
  std::vector<Stored> stored;
  std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const Stored& s : stored) sum += s.bytes;
    return sum;
  }
};

std::vector<Item> items_of(const ModelConfig& config, const Checkpoint& checkpoint, const WeightForm& form) {
  std::vector<Item> items;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    if (tensor.need == Need::with_fp8_weight) continue;
    const bool integers = !IntegerWeight::parts(checkpoint, tensor.name).empty();
    const TensorInfo* stored = checkpoint.find(tensor.name);
    if (!stored && !integers) {
      if (tensor.required()) {
        checkpoint.require(tensor.name, tensor.shape);  // says so
      }
      continue;
    }
    Item item{tensor, nullptr, {}};
    if (is_quantized(tensor) || is_kv_a(tensor)) {
      item.stored = form.tensors(tensor.name.substr(0, tensor.name.size() - 6), tensor.shape[0], tensor.shape[1]);
    } else {
      item.copied = &checkpoint.require(tensor.name, tensor.shape);
      item.stored = {{tensor.name, stored->type, tensor.shape, stored->bytes}};
    }
    items.push_back(std::move(item));
  }
  return items;
}

/// The header of a safetensors file and where each tensor lies behind it.
std::string header_of(const std::vector<Item>& items, std::map<std::string, std::uint64_t>& offsets,
                      std::uint64_t& end) {
  ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  std::uint64_t at = 0;
  for (const Item& item : items) {
    for (const Stored& s : item.stored) {
      header[s.name] = {{"dtype", s.type}, {"shape", s.shape}, {"data_offsets", {at, at + s.bytes}}};
      offsets[s.name] = at;
      at += s.bytes;
    }
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::string whole(8, '\0');
  std::memcpy(whole.data(), &length, 8);
  whole += text;
  for (auto& [name, offset] : offsets) offset += whole.size();
  end = whole.size() + at;
  return whole;
}

void add_copy(Conversion& work, const Checkpoint& checkpoint, const Item& item, std::uint64_t offset) {
  constexpr std::uint64_t piece = 8u << 20;
  const TensorInfo* tensor = item.copied;
  for (std::uint64_t from = 0; from < tensor->bytes; from += piece) {
    const std::uint64_t bytes = std::min(piece, tensor->bytes - from);
    work.add_piece({{offset + from, bytes}}, bytes, [=, &checkpoint](std::vector<std::byte>& out) {
      checkpoint.read(*tensor, from, out);
      return StorageError{};
    });
  }
}

/// A weight has thousands of pieces, which share what they are made from.
using Columns = std::shared_ptr<const std::vector<float>>;

/// Of a weight's columns; empty where nothing is known, as of kv_b_proj, which computes in halves.
Columns importance_of(const std::optional<Importance>& importance, const ExpectedTensor& tensor) {
  if (!importance || tensor.part == Part::mtp) return std::make_shared<const std::vector<float>>();
  const auto at = tensor.name.find(".experts.");
  const std::int64_t number = at == std::string::npos ? 0 : std::stoll(tensor.name.substr(at + 9));
  return std::make_shared<const std::vector<float>>(
      importance->of(gguf_tensor_name(tensor.name), number, tensor.shape[1]));
}

void add_weight(Conversion& work, const std::shared_ptr<const RowReader>& reader, const WeightForm& form,
                const Item& item, const Columns& importance, const std::map<std::string, std::uint64_t>& offsets) {
  const std::int64_t rows = item.tensor.shape[0], cols = item.tensor.shape[1];
  std::vector<std::uint64_t> at;
  for (const Stored& s : item.stored) at.push_back(offsets.at(s.name));
  for (std::int64_t first = 0; first < rows; first += form.strip_rows()) {
    const std::int64_t count = std::min(form.strip_rows(), rows - first);
    std::vector<Conversion::Range> ranges;
    const auto bytes = form.strip_bytes(count, cols);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      ranges.push_back({at[i], u64(bytes[i])});
      at[i] += u64(bytes[i]);
    }
    work.add_piece(std::move(ranges), u64(count * cols) * 2, [=, &form](std::vector<std::byte>& out) {
      std::vector<float> values;
      reader->read(first, count, values);
      return form.encode(values, count, cols, importance->empty() ? nullptr : importance->data(), out.data());
    });
  }
  if (item.stored.size() > 2) {  // the shape, which packed words alone do not tell
    work.add_piece({{at[2], 16}}, 0, [=](std::vector<std::byte>& out) {
      const std::int64_t shape[2] = {rows, cols};
      std::memcpy(out.data(), shape, 16);
      return StorageError{};
    });
  }
}

void copy_side_files(const QuantizeOptions& options, const WeightForm& form) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(options.in)) {
    const auto name = entry.path().filename().string();
    if (!entry.is_regular_file() || entry.path().extension() == ".safetensors" || name.ends_with(".index.json") ||
        name == "config.json" || fs::file_size(entry.path(), ignored) > (256u << 20)) {
      continue;
    }
    fs::copy_file(entry.path(), options.out / name, fs::copy_options::overwrite_existing);
  }
  std::ifstream in(options.in / "config.json");
  ordered_json config = ordered_json::parse(in);
  config["quantization_config"] = form.config();
  std::ofstream(options.out / "config.json") << config.dump(2) << "\n";
}

}  // namespace

std::map<std::string, StorageError> write_folder(const ModelConfig& config, const Checkpoint& checkpoint,
                                                 const QuantizeOptions& options) {
  const auto form = form_of(options);
  std::optional<Importance> importance;
  if (!options.importance.empty()) importance = Importance::read(options.importance);
  fs::create_directories(options.out);
  std::vector<std::vector<Item>> shards(1);
  std::uint64_t filled = 0;
  for (Item& item : items_of(config, checkpoint, *form)) {
    if (filled > 0 && filled + item.bytes() > kShardBytes) {
      shards.emplace_back();
      filled = 0;
    }
    filled += item.bytes();
    shards.back().push_back(std::move(item));
  }

  const std::string job = job_of(checkpoint, options);
  std::map<std::string, StorageError> errors;
  std::deque<Conversion> works;
  ordered_json weight_map = ordered_json::object();
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1 ? "model.safetensors"
                                                : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    std::map<std::string, std::uint64_t> offsets;
    std::uint64_t end = 0;
    const std::string header = header_of(shards[i], offsets, end);
    for (const auto& [tensor, offset] : offsets) weight_map[tensor] = name;
    total += end - header.size();
    Conversion& work = works.emplace_back(options.out / name, header, end, job);
    for (const Item& item : shards[i]) {
      work.add_tensor(item.tensor.name, std::string(name_of(item.tensor.part)));
      if (item.copied) {
        add_copy(work, checkpoint, item, offsets.at(item.tensor.name));
        continue;
      }
      const auto reader =
          std::make_shared<const RowReader>(checkpoint, config.quantization.value_or(WeightQuantization{}),
                                            item.tensor.name, item.tensor.shape[0], item.tensor.shape[1]);
      add_weight(work, reader, *form, item, importance_of(importance, item.tensor), offsets);
    }
    for (const auto& [kind, error] : work.run(options.threads, !options.quiet)) errors[kind] += error;
  }
  if (shards.size() > 1) {
    fs::remove(options.out / "model.safetensors");  // of a model that was here before, and would be read instead
    const ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}};
    std::ofstream(options.out / "model.safetensors.index.json") << index.dump(2) << "\n";
  }
  copy_side_files(options, *form);
  for (Conversion& work : works) work.forget();
  return errors;
}

}  // namespace shoal
