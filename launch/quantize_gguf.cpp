#include "launch/quantize_gguf.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "launch/recipe.h"
#include "launch/sampling_defaults.h"
#include "launch/sized_mix.h"
#include "planner/tensor_names.h"
#include "runtime/gguf_describe.h"
#include "runtime/gguf_names.h"
#include "runtime/gguf_writer.h"
#include "runtime/importance.h"
#include "runtime/model_source.h"
#include "runtime/row_reader.h"

namespace shoal {
namespace {

constexpr std::int64_t kPieceElements = 1 << 20;

/// Where rows of a stored matrix go and what becomes of them.
struct Target {
  const QuantFormat* format;
  std::uint64_t offset;
  std::shared_ptr<const std::vector<float>> importance;  // of its columns; empty: alike

  /// What lies so many elements further.
  Target after(std::int64_t elements) const {
    return {format, offset + static_cast<std::uint64_t>(format->bytes(elements)), importance};
  }
};

/// Rounds values to a format and measures what that cost.
/// `importance`: of the columns of a row, or empty.
StorageError encode(const QuantFormat& format, const std::vector<float>& values, std::int64_t row,
                    const std::vector<float>& importance, std::byte* out) {
  const auto elements = static_cast<std::int64_t>(values.size());
  for (const float value : values) {
    if (!(std::abs(value) <= 3.4e38f)) fail("holds a value that is not finite");
  }
  // Formats' searches know no rows; a row is whole blocks.
  if (importance.empty()) {
    format.quantize(values.data(), elements, nullptr, out);
  } else {
    for (std::int64_t first = 0; first < elements; first += row)
      format.quantize(values.data() + first, row, importance.data(), out + format.bytes(first));
  }
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
      : config_(config), checkpoint_(checkpoint), recipe_(options.size.empty() ? options.type : "Q8_0") {
    describe_model(header_, config, model_name(options.in));
    if (options.size.empty()) header_.add("general.file_type", recipe_.file_type());
    header_.add("general.quantization_version", std::uint32_t{2});
    SamplingDefaults::of_model(options.in, {}).describe(header_);
    if (!options.importance.empty()) importance_ = Importance::read(options.importance);
    describe_tokenizer(header_, config, options.in);
    if (!options.size.empty()) choose(options);
    for (const ExpectedTensor& tensor : expected_tensors(config)) place(tensor);
    if (config.rope_scaling.type == RopeScaling::Type::llama3 || config.rope_scaling.type == RopeScaling::Type::factors)
      rope_factors_ = add("rope_freqs.weight", {config.head_dim / 2}, "F32");
  }

  Conversion conversion(const std::filesystem::path& out, std::string job) {
    layout_ = header_.layout();
    Conversion work(out, layout_.header, layout_.file_bytes, std::move(job));
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

  std::string_view format_of(const std::string& gguf_name, const ExpectedTensor& tensor, std::int64_t cols) const {
    const auto it = chosen_.find(gguf_name);
    return it != chosen_.end() ? it->second->name : recipe_.format_for(config_, tensor, cols).name;
  }

  /// Formats for a file of options.size, in chosen_.
  void choose(const QuantizeOptions& options) {
    std::map<std::string, Choosable> by_name;
    double others = 0, parameters = 0;
    for (const ExpectedTensor& tensor : expected_tensors(config_)) {
      if (!tensor.required()) continue;
      const std::int64_t cols = tensor.shape.back(), rows = tensor.shape.size() > 1 ? tensor.shape.front() : 1;
      parameters += static_cast<double>(rows * cols);
      if (tensor.shape.size() < 2 || tensor.part == Part::router) {
        others += static_cast<double>(rows * cols) * 4 + 32;
        continue;
      }
      if (is_kv_b(tensor)) {
        add_halves(by_name, tensor);
        continue;
      }
      const std::string name = gguf_tensor_name(tensor.name);
      Choosable& choice = by_name[name];
      choice.name = name;
      choice.cols = cols;
      choice.rows += rows;
      choice.matrix_rows = rows;
      if (choice.read) continue;  // a further expert
      choice.read = [this, name, rows, cols, tensor](std::int64_t first, std::int64_t count, std::vector<float>& values,
                                                     std::vector<float>& importance) {
        // Of a stack, rows of one expert each.
        std::string stored = tensor.name;
        const std::int64_t expert = first / rows;
        if (is_expert(tensor)) {
          const auto at = stored.find(".experts.") + 9;
          stored.replace(at, stored.find('.', at) - at, std::to_string(expert));
        }
        reader_of(stored, rows, cols)->read(std::min(first % rows, rows - count), count, values);
        importance = *importance_of(name, expert, cols);
      };
    }
    std::vector<Choosable> tensors;
    for (auto& [name, choice] : by_name) tensors.push_back(std::move(choice));
    // Each tensor may be followed by padding; the header's own size is known when formats are, and changes by nothing.
    const double header =
        static_cast<double>(header_.layout().header.size()) + 96.0 * static_cast<double>(tensors.size());
    const double budget =
        parse_size(options.size, parameters) - others - header - 32.0 * static_cast<double>(tensors.size());
    chosen_ = choose_formats(tensors, budget, options.threads, !options.quiet);
  }

  /// kv_b_proj's, each with the first head's rows as a sample.
  void add_halves(std::map<std::string, Choosable>& by_name, const ExpectedTensor& tensor) {
    const std::int64_t heads = config_.num_attention_heads, nope = config_.qk_nope_head_dim, v = config_.v_head_dim,
                       rank = config_.kv_lora_rank;
    const bool split = !checkpoint_.find(tensor.name) && IntegerWeight::parts(checkpoint_, tensor.name).empty();
    const auto add_half = [&](const char* gguf_part, const char* part, std::int64_t rows, std::int64_t cols,
                              bool turned) {
      const std::string name = fmt::format("blk.{}.{}.weight", tensor.layer, gguf_part);
      Choosable& choice = by_name[name];
      choice = {name, heads * rows, cols, rows, {}};
      choice.read = [=, this, stored = std::string(tensor.name)](std::int64_t first, std::int64_t count,
                                                                 std::vector<float>& values,
                                                                 std::vector<float>& importance) {
        const std::int64_t head = first / rows, in_head = std::min(first % rows, rows - count);
        importance = *importance_of(name, head, cols);
        if (split) {
          const auto reader =
              reader_of(std::string(stored).replace(stored.find("kv_b_proj"), 9, part), heads * rows, cols);
          return reader->read(head * rows + in_head, count, values);
        }
        const auto reader = reader_of(stored, heads * (nope + v), rank);
        if (!turned) return reader->read(head * (nope + v) + nope + in_head, count, values);
        std::vector<float> source;
        reader->read(head * (nope + v), nope, source);
        values.resize(static_cast<std::size_t>(count * nope));
        for (std::int64_t r = 0; r < count; ++r)
          for (std::int64_t c = 0; c < nope; ++c)
            values[static_cast<std::size_t>(r * nope + c)] = source[static_cast<std::size_t>(c * rank + in_head + r)];
      };
    };
    add_half("attn_k_b", "k_b_proj", rank, nope, true);
    add_half("attn_v_b", "v_b_proj", v, rank, false);
  }

  void place(const ExpectedTensor& tensor) {
    if (!tensor.required()) return;
    const std::int64_t heads = config_.num_attention_heads, rank = config_.kv_lora_rank;
    if (is_kv_b(tensor)) {
      const std::string prefix = fmt::format("blk.{}.", tensor.layer);
      const auto half = [&](const char* name, std::vector<std::int64_t> shape) {
        number_of_[prefix + name] = add(prefix + name, shape, format_of(prefix + name, tensor, shape.back()));
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
    number_of_[name] = add(name, shape, format_of(name, tensor, tensor.shape.back()));
  }

  Target target(const std::string& gguf_name) const {
    const std::size_t number = number_of_.at(gguf_name);
    return {formats_[number], layout_.offsets[number], std::make_shared<const std::vector<float>>()};
  }

  void add_pieces(Conversion& work, const ExpectedTensor& tensor) {
    if (!tensor.required()) return;
    const std::int64_t cols = tensor.shape.back(), rows = tensor.shape.size() > 1 ? tensor.shape.front() : 1;
    work.add_tensor(tensor.name, std::string(name_of(tensor.part)));
    if (is_kv_b(tensor) && IntegerWeight::parts(checkpoint_, tensor.name).empty() && !checkpoint_.find(tensor.name))
      return add_split_kv_b(work, tensor);
    const auto reader = reader_of(tensor.name, rows, cols);
    if (is_kv_b(tensor)) return add_kv_b(work, tensor, reader);
    const std::string name = gguf_tensor_name(tensor.name);
    Target to = target(name);
    std::int64_t number = 0;
    if (is_expert(tensor)) {
      number = std::stoll(tensor.name.substr(tensor.name.find(".experts.") + 9));
      to.offset += static_cast<std::uint64_t>(number * to.format->bytes(rows * cols));
    }
    to.importance = importance_of(name, number, cols);
    // A GGUF has Llama's rows in that order already.
    const bool reorder =
        config_.architecture == Architecture::llama && !config_.rope_interleave &&
        (tensor.name.find(".q_proj.") != std::string::npos || tensor.name.find(".k_proj.") != std::string::npos);
    if (reorder) return add_reordered(work, reader, to, rows, cols);
    const std::int64_t at_a_time = std::max<std::int64_t>(1, kPieceElements / cols);
    for (std::int64_t first = 0; first < rows; first += at_a_time) {
      const std::int64_t count = std::min(at_a_time, rows - first);
      add_rows(work, to.after(first * cols), count, cols, tensor.name,
               [=](std::vector<float>& values) { reader->read(first, count, values); });
    }
  }

  std::shared_ptr<const std::vector<float>> importance_of(const std::string& gguf_name, std::int64_t number,
                                                          std::int64_t cols) const {
    return std::make_shared<const std::vector<float>>(importance_ ? importance_->of(gguf_name, number, cols)
                                                                  : std::vector<float>());
  }

  /// `read` gives `count` rows, which go to `to`.
  void add_rows(Conversion& work, const Target& to, std::int64_t count, std::int64_t cols, const std::string& name,
                std::function<void(std::vector<float>&)> read) {
    const auto bytes = static_cast<std::uint64_t>(to.format->bytes(count * cols));
    work.add_piece({{to.offset, bytes}}, static_cast<std::uint64_t>(count * cols) * 2,
                   [=, read = std::move(read)](std::vector<std::byte>& out) {
                     std::vector<float> values;
                     read(values);
                     try {
                       return encode(*to.format, values, cols, *to.importance, out.data());
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
      add_rows(work, to.after(head * width), dim, width, "", [=](std::vector<float>& values) {
        std::vector<float> source;
        bias ? reader->read(0, 1, source) : reader->read(head, dim, source);
        const float* from = source.data() + (bias ? head : 0);
        values.resize(static_cast<std::size_t>(dim * width));
        for (std::int64_t r = 0; r < dim; ++r)
          std::copy_n(from + source_row(r, dim) * width, width, values.data() + r * width);
      });
    }
  }

  std::shared_ptr<const RowReader> reader_of(const std::string& name, std::int64_t rows, std::int64_t cols) const {
    return std::make_shared<const RowReader>(checkpoint_, config_.quantization.value_or(WeightQuantization{}), name,
                                             rows, cols);
  }

  /// From a GGUF that has the halves already.
  void add_split_kv_b(Conversion& work, const ExpectedTensor& tensor) {
    const auto half = [&](const char* part, const char* gguf_part, std::int64_t rows, std::int64_t cols) {
      const std::string gguf_name = fmt::format("blk.{}.{}.weight", tensor.layer, gguf_part);
      const auto reader = reader_of(std::string(tensor.name).replace(tensor.name.find("kv_b_proj"), 9, part),
                                    config_.num_attention_heads * rows, cols);
      Target to = target(gguf_name);
      for (std::int64_t h = 0; h < config_.num_attention_heads; ++h) {
        to.importance = importance_of(gguf_name, h, cols);
        add_rows(work, to.after(h * rows * cols), rows, cols, tensor.name,
                 [=](std::vector<float>& values) { reader->read(h * rows, rows, values); });
      }
    };
    half("k_b_proj", "attn_k_b", config_.kv_lora_rank, config_.qk_nope_head_dim);
    half("v_b_proj", "attn_v_b", config_.v_head_dim, config_.kv_lora_rank);
  }

  void add_kv_b(Conversion& work, const ExpectedTensor& tensor, const std::shared_ptr<const RowReader>& reader) {
    const std::string prefix = fmt::format("blk.{}.", tensor.layer);
    Target key = target(prefix + "attn_k_b.weight"), value = target(prefix + "attn_v_b.weight");
    const std::int64_t nope = config_.qk_nope_head_dim, v = config_.v_head_dim, rank = config_.kv_lora_rank;
    for (std::int64_t h = 0; h < config_.num_attention_heads; ++h) {
      const std::int64_t first = h * (nope + v);
      key.importance = importance_of(prefix + "attn_k_b.weight", h, nope);
      value.importance = importance_of(prefix + "attn_v_b.weight", h, rank);
      add_rows(work, key.after(h * nope * rank), rank, nope, tensor.name, [=](std::vector<float>& values) {
        std::vector<float> source;
        reader->read(first, nope, source);
        values.resize(source.size());
        for (std::int64_t r = 0; r < nope; ++r)
          for (std::int64_t c = 0; c < rank; ++c)
            values[static_cast<std::size_t>(c * nope + r)] = source[static_cast<std::size_t>(r * rank + c)];
      });
      add_rows(work, value.after(h * v * rank), v, rank, tensor.name,
               [=](std::vector<float>& values) { reader->read(first + nope, v, values); });
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
    const Target to{find_format("F32"), layout_.offsets[*rope_factors_], importance_of("", 0, n)};
    add_rows(work, to, 1, n, "rope_freqs.weight", [factors](std::vector<float>& values) { values = factors; });
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  const Recipe recipe_;
  std::optional<Importance> importance_;
  std::map<std::string, const QuantFormat*> chosen_;  // by GGUF name; empty: as the recipe says
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
  Conversion work = plan.conversion(options.out, job_of(checkpoint, options));
  auto errors = work.run(options.threads, !options.quiet);
  work.forget();
  return errors;
}

}  // namespace shoal
