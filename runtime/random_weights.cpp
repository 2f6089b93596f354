#include "runtime/random_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>

#include "base/error.h"
#include "planner/cards.h"
#include "planner/precision.h"
#include "planner/tensor_names.h"

namespace shoal {
namespace {

/// Blocks of each format that tensors are made of, over and over. A prime: rows hold powers of two of them, so each row
/// begins at another one.
constexpr std::int64_t kBlocks = 1021, kSingles = 65521;
constexpr float kDeviation = 0.02f;

std::vector<std::byte> random_blocks(const QuantFormat& format) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, kDeviation);
  const std::int64_t blocks = format.block_elements == 1 ? kSingles : kBlocks;
  std::vector<float> values(static_cast<std::size_t>(blocks * format.block_elements));
  for (float& v : values) v = normal(random);
  std::vector<std::byte> bytes(static_cast<std::size_t>(blocks * format.block_bytes));
  const std::vector<float> equal(values.size(), 1.0f);
  format.quantize(values.data(), std::ssize(values), equal.data(), bytes.data());
  return bytes;
}

std::vector<std::byte> random_f8() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1);
  std::vector<std::byte> bytes;
  for (std::int64_t i = 0; i < kSingles; ++i) bytes.push_back(static_cast<std::byte>(f32_to_f8_e4m3(normal(random))));
  return bytes;
}

std::vector<std::byte> floats(float value) {
  std::vector<std::byte> bytes(4);
  std::memcpy(bytes.data(), &value, 4);
  return bytes;
}

/// What a tensor's bytes are copied from, again and again.
class Patterns {
 public:
  void fill(const TensorInfo& tensor, std::uint64_t from, std::span<std::byte> out) {
    const std::vector<std::byte>& pattern = of(tensor);
    const std::uint64_t unit = tensor.format ? static_cast<std::uint64_t>(tensor.format->block_bytes) : 1;
    const std::uint64_t begin = std::hash<std::string>{}(tensor.name) % (pattern.size() / unit) * unit;
    for (std::size_t done = 0; done < out.size();) {
      const std::size_t at = (begin + from + done) % pattern.size();
      const std::size_t n = std::min(out.size() - done, pattern.size() - at);
      std::memcpy(out.data() + done, pattern.data() + at, n);
      done += n;
    }
  }

 private:
  const std::vector<std::byte>& of(const TensorInfo& tensor) {
    const bool factor = tensor.name.ends_with("_scale_inv");
    const std::string key = factor ? "factor" : tensor.shape.size() == 1 ? "vector" : tensor.type;
    const std::lock_guard lock(mutex_);
    auto& pattern = patterns_[key];
    if (!pattern.empty()) return pattern;
    if (factor) return pattern = floats(kDeviation);
    if (tensor.shape.size() == 1) return pattern = floats(1.0f);
    return pattern = tensor.format ? random_blocks(*tensor.format) : random_f8();
  }

  std::mutex mutex_;
  std::map<std::string, std::vector<std::byte>> patterns_;
};

}  // namespace

ModelConfig random_model_config(const std::string& model, const std::string& precision, int layers) {
  ModelConfig config = find_model(model);
  if (layers > config.num_hidden_layers)
    throw Error(fmt::format("--layers {}: {} has {}", layers, model, config.num_hidden_layers), ExitCode::usage);
  if (layers > 0) config.num_hidden_layers = layers;
  config.num_nextn_predict_layers = 0;
  config.first_k_dense_replace = std::min(config.first_k_dense_replace, config.num_hidden_layers);
  const std::string name = Precision::from_name(precision).name();
  if (name.rfind("int", 0) == 0)
    throw Error("--weights random comes in bf16, f16, f32, fp8, and GGUF types and mixes, not in " + precision,
                ExitCode::usage);
  config.quantization.reset();
  if (name == "fp8") config.quantization = WeightQuantization{.method = "fp8", .block_rows = 128, .block_cols = 128};
  return config;
}

Checkpoint random_checkpoint(const ModelConfig& config, const std::string& precision) {
  const Precision stored = Precision::from_name(precision);
  std::vector<TensorInfo> tensors;
  for (const ExpectedTensor& expected : expected_tensors(config)) {
    if (expected.need == Need::never || expected.part == Part::mtp) continue;
    TensorInfo tensor;
    tensor.name = expected.name;
    tensor.shape = expected.shape;
    // Vectors in FP32, as GGUF has them: they hardly count.
    const bool vector = expected.shape.size() == 1 || expected.need == Need::with_fp8_weight;
    const std::string type(vector ? "F32" : stored.type_of(config, expected).name);
    if (expected.need == Need::with_fp8_weight && !config.quantization) continue;
    std::int64_t elements = 1;
    for (const std::int64_t n : expected.shape) elements *= n;
    if (type == "FP8") {
      tensor.type = "F8_E4M3";
      tensor.dtype = DType::f8_e4m3;
      tensor.bytes = static_cast<std::uint64_t>(elements);
    } else {
      const QuantFormat* format = find_format(type);
      if (!format || !format->quantize) fail("--weights random: {} cannot be made up", type);
      tensor.type = type;
      tensor.set_format(format);
      tensor.bytes = static_cast<std::uint64_t>(format->bytes(elements));
    }
    tensors.push_back(std::move(tensor));
  }
  const auto patterns = std::make_shared<Patterns>();
  return Checkpoint("random weights", std::move(tensors),
                    [patterns](const TensorInfo& tensor, std::uint64_t from, std::span<std::byte> out) {
                      patterns->fill(tensor, from, out);
                    });
}

}  // namespace shoal
