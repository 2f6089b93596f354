#include "launch/quantize_gguf.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "launch/recipe.h"
#include "planner/tensor_names.h"
#include "runtime/gguf_describe.h"
#include "runtime/gguf_names.h"
#include "runtime/gguf_writer.h"
#include "runtime/model_source.h"
#include "runtime/row_reader.h"

namespace shoal {
namespace {

constexpr std::int64_t kPieceElements = 1 << 20;

/// Where rows of a stored matrix go and what becomes of them.
struct Target {
  const QuantFormat* format;
  std::uint64_t offset;
};

/// Rounds values to a format and measures what that cost.
StorageError encode(const QuantFormat& format, const std::vector<float>& values, std::int64_t row, std::byte* out) {
  const auto elements = static_cast<std::int64_t>(values.size());
  for (const float value : values) {
    if (!(std::abs(value) <= 3.4e38f)) fail("holds a value that is not finite");
  }
  // Formats' searches know no rows; a row is whole blocks.
  format.quantize(values.data(), elements, nullptr, out);
  std::vector<float> restored(static_cast<std::size_t>(row));
  StorageError error;
  for (std::int64_t first = 0; first < elements; first += row) {
    format.dequantize(out + format.bytes(first), row, restored.data());
    for (std::int64_t i = 0; i < row; ++i) {
      const double value = static_cast<double>(values[static_cast<std::size_t>(first + i)]);
      const double rest = static_cast<double>(restored[static_cast<std::size_t>(i)]) - value;
      error.squared_error += rest * rest;
      error.squared_values += value * value;
    }
  }
  return error;
}

/// Row `row` of a head as GGUF orders Llama's: rotated pairs side by side.
std::int64_t source_row(std::int64_t row, std::int64_t head_dim) {
  const std::int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

class GgufPlan {
 public:
  GgufPlan(const ModelConfig& config, const Checkpoint& checkpoint, const QuantizeOptions& options)
      : config_(config), checkpoint_(checkpoint), recipe_(options.type) {
    describe_model(header_, config, model_name(options.in));
    header_.add("general.file_type", recipe_.file_type());
    header_.add("general.quantization_version", std::uint32_t{2});
    describe_tokenizer(header_, config, options.in);
    for (const ExpectedTensor& tensor : expected_tensors(config)) place(tensor);
    if (config.rope_scaling.type == RopeScaling::Type::llama3)
      rope_factors_ = add("rope_freqs.weight", {config.head_dim / 2}, "F32");
  }

  Conversion conversion(const std::filesystem::path& out) {
    layout_ = header_.layout();
    Conversion work(out, layout_.header, layout_.file_bytes);
    if (rope_factors_) write_rope_factors(work);
    for (const ExpectedTensor& tensor : expected_tensors(config_)) add_pieces(work, tensor);
    return work;
  }

 private:
  bool is_kv_b(const ExpectedTensor& tensor) const { return tensor.need == Need::unless_split; }
  bool is_expert(const ExpectedTensor& tensor) const { return tensor.part == Part::routed_experts; }

  std::size_t add(const std::string& name, std::vector<std::int64_t> shape, std::string_view format) {
    formats_.push_back(find_format(format));
    return header_.add_tensor(name, std::move(shape), *formats_.back());
  }

  void place(const ExpectedTensor& tensor) {
    if (!tensor.required()) return;
    const int layers = config_.num_hidden_layers;
    const std::int64_t heads = config_.num_attention_heads, rank = config_.kv_lora_rank;
    if (is_kv_b(tensor)) {
      const std::string prefix = fmt::format("blk.{}.", tensor.layer);
      const auto half = [&](const char* name, std::vector<std::int64_t> shape) {
        number_of_[prefix + name] = add(prefix + name, shape, recipe_.format_for(tensor, shape.back(), layers).name);
      };
      half("attn_k_b.weight", {heads, rank, config_.qk_nope_head_dim});
      half("attn_v_b.weight", {heads, config_.v_head_dim, rank});
      return;
    }
    const std::string name = gguf_tensor_name(tensor.name);
    if (name.empty()) fail("{}: GGUF has no name for it", tensor.name);
    if (number_of_.contains(name)) return;  // a further expert of a stack
    std::vector<std::int64_t> shape = tensor.shape;
    if (is_expert(tensor)) shape.insert(shape.begin(), config_.n_routed_experts);
    number_of_[name] = add(name, shape, recipe_.format_for(tensor, tensor.shape.back(), layers).name);
  }

  Target target(const std::string& gguf_name) const {
    const std::size_t number = number_of_.at(gguf_name);
    return {formats_[number], layout_.offsets[number]};
  }

  void add_pieces(Conversion& work, const ExpectedTensor& tensor) {
    if (!tensor.required()) return;
    const std::int64_t cols = tensor.shape.back(), rows = tensor.shape.size() > 1 ? tensor.shape.front() : 1;
    const auto reader = std::make_shared<const RowReader>(
        checkpoint_, config_.quantization.value_or(WeightQuantization{}), tensor.name, rows, cols);
    work.add_tensor(tensor.name, std::string(name_of(tensor.part)));
    if (is_kv_b(tensor)) return add_kv_b(work, tensor, reader);
    Target to = target(gguf_tensor_name(tensor.name));
    if (is_expert(tensor)) {
      const auto number = tensor.name.substr(tensor.name.find(".experts.") + 9);
      to.offset += static_cast<std::uint64_t>(std::stoll(number) * to.format->bytes(rows * cols));
    }
    const bool reorder =
        config_.architecture == Architecture::llama &&
        (tensor.name.find(".q_proj.") != std::string::npos || tensor.name.find(".k_proj.") != std::string::npos);
    if (reorder) return add_reordered(work, reader, to, rows, cols);
    const std::int64_t at_a_time = std::max<std::int64_t>(1, kPieceElements / cols);
    for (std::int64_t first = 0; first < rows; first += at_a_time) {
      const std::int64_t count = std::min(at_a_time, rows - first);
      add_rows(work, to.offset + static_cast<std::uint64_t>(to.format->bytes(first * cols)), to.format, count, cols,
               tensor.name, [=](std::vector<float>& values) { reader->read(first, count, values); });
    }
  }

  /// `read` gives `count` rows, which go to `offset`.
  void add_rows(Conversion& work, std::uint64_t offset, const QuantFormat* format, std::int64_t count,
                std::int64_t cols, const std::string& name, std::function<void(std::vector<float>&)> read) {
    const auto bytes = static_cast<std::uint64_t>(format->bytes(count * cols));
    work.add_piece({{offset, bytes}}, static_cast<std::uint64_t>(count * cols) * 2,
                   [=, read = std::move(read)](std::vector<std::byte>& out) {
                     std::vector<float> values;
                     read(values);
                     try {
                       return encode(*format, values, cols, out.data());
                     } catch (const Error& e) {
                       fail("tensor {}: {}", name, e.what());
                     }
                   });
  }

  /// Head by head; a bias is a matrix of one column.
  void add_reordered(Conversion& work, const std::shared_ptr<const RowReader>& reader, Target to, std::int64_t rows,
                     std::int64_t cols) {
    const bool bias = rows == 1;
    const std::int64_t lines = bias ? cols : rows, width = bias ? 1 : cols, dim = config_.head_dim;
    for (std::int64_t head = 0; head < lines; head += dim) {
      add_rows(work, to.offset + static_cast<std::uint64_t>(to.format->bytes(head * width)), to.format, dim, width, "",
               [=](std::vector<float>& values) {
                 std::vector<float> source;
                 bias ? reader->read(0, 1, source) : reader->read(head, dim, source);
                 const float* from = source.data() + (bias ? head : 0);
                 values.resize(static_cast<std::size_t>(dim * width));
                 for (std::int64_t r = 0; r < dim; ++r)
                   std::copy_n(from + source_row(r, dim) * width, width, values.data() + r * width);
               });
    }
  }

  void add_kv_b(Conversion& work, const ExpectedTensor& tensor, const std::shared_ptr<const RowReader>& reader) {
    const std::string prefix = fmt::format("blk.{}.", tensor.layer);
    const Target key = target(prefix + "attn_k_b.weight"), value = target(prefix + "attn_v_b.weight");
    const std::int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim, rank = config_.kv_lora_rank;
    for (std::int64_t h = 0; h < config_.num_attention_heads; ++h) {
      const std::int64_t first = h * (nope + v);
      add_rows(work, key.offset + static_cast<std::uint64_t>(key.format->bytes(h * nope * rank)), key.format, rank,
               nope, tensor.name, [=](std::vector<float>& values) {
                 std::vector<float> source;
                 reader->read(first, nope, source);
                 values.resize(source.size());
                 for (std::int64_t r = 0; r < nope; ++r)
                   for (std::int64_t c = 0; c < rank; ++c)
                     values[static_cast<std::size_t>(c * nope + r)] = source[static_cast<std::size_t>(r * rank + c)];
               });
      add_rows(work, value.offset + static_cast<std::uint64_t>(value.format->bytes(h * v * rank)), value.format, v,
               rank, tensor.name, [=](std::vector<float>& values) { reader->read(first + nope, v, values); });
    }
  }

  /// What each frequency is divided by under Llama 3.1's rule.
  void write_rope_factors(Conversion& work) {
    ModelConfig plain = config_;
    plain.rope_scaling = {};
    const auto unscaled = rope_frequencies(plain).inv_freq, scaled = rope_frequencies(config_).inv_freq;
    std::vector<float> factors(unscaled.size());
    for (std::size_t i = 0; i < factors.size(); ++i) factors[i] = unscaled[i] / scaled[i];
    work.add_tensor("rope_freqs.weight", std::string(name_of(Part::norms)));
    const auto n = static_cast<std::int64_t>(factors.size());
    add_rows(work, layout_.offsets[*rope_factors_], find_format("F32"), 1, n, "rope_freqs.weight",
             [factors](std::vector<float>& values) { values = factors; });
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  const Recipe recipe_;
  GgufHeaderWriter header_;
  GgufHeaderWriter::Layout layout_;
  std::vector<const QuantFormat*> formats_;
  std::unordered_map<std::string, std::size_t> number_of_;  // by GGUF name
  std::optional<std::size_t> rope_factors_;
};

}  // namespace

std::map<std::string, StorageError> write_gguf(const ModelConfig& config, const Checkpoint& checkpoint,
                                               const QuantizeOptions& options) {
  GgufPlan plan(config, checkpoint, options);
  Conversion work = plan.conversion(options.out);
  auto errors = work.run(options.threads, !options.quiet);
  work.forget();
  return errors;
}

}  // namespace shoal
