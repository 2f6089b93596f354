#include "planner/precision.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "planner/gguf_mixes.h"

namespace shoal {
namespace {

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

bool is_linear(const ExpectedTensor& t) {
  if (t.shape.size() < 2) return false;
  // Of the MTP layer, R1 keeps the input projection in BF16.
  if (t.part == Part::mtp) return t.name.find("_proj") != std::string::npos && !t.name.ends_with("eh_proj.weight");
  return t.part != Part::embedding && t.part != Part::head && t.part != Part::router && t.part != Part::norms;
}

}  // namespace

Precision Precision::from_name(const std::string& name) {
  Precision p;
  const std::string type = upper(name);
  p.name_ = name;
  if (type == "F32" || type == "F16" || type == "BF16" || type == "FP8") {
    p.linear_ = &weight_type(type);
  } else if (type == "INT8" || type == "INT4") {
    p.linear_ = &weight_type(type + "-G128");
  } else if (type.starts_with("INT") && find_weight_type(type)) {
    p.linear_ = find_weight_type(type);
  } else if (is_gguf_mix(type)) {
    p.name_ = type;
    p.gguf_ = true;
  } else {
    throw Error(
        fmt::format(
            "--precision {} is not known; there are f32, f16, bf16, fp8, int8, int4 (groups of 128, or int4-g32, "
            "int4-g64), GGUF mixes (Q8_0, Q4_K_M, IQ2_XXS, ...) and UD-IQ1_S, UD-IQ1_M, UD-IQ2_XXS, UD-Q2_K_XL",
            name),
        ExitCode::usage);
  }
  if (!p.gguf_)
    std::transform(type.begin(), type.end(), p.name_.begin(), [](unsigned char c) { return std::tolower(c); });
  return p;
}

Precision Precision::of_config(const ModelConfig& config) {
  if (const auto& q = config.quantization) {
    if (q->method == "fp8") return from_name("fp8");
    if (q->bits == 4 && (q->group_size == 32 || q->group_size == 64))
      return from_name(fmt::format("int4-g{}", q->group_size));
    return from_name(q->bits <= 4 ? "int4" : "int8");
  }
  if (config.torch_dtype == "float32") return from_name("f32");
  if (config.torch_dtype == "float16") return from_name("f16");
  return from_name("bf16");
}

Precision Precision::of_tensors(std::string name, std::map<std::string, const WeightType*, std::less<>> types) {
  Precision p;
  p.name_ = std::move(name);
  p.gguf_ = true;
  p.types_ = std::make_shared<const std::map<std::string, const WeightType*, std::less<>>>(std::move(types));
  return p;
}

const WeightType& Precision::type_of(const ModelConfig& config, const ExpectedTensor& tensor) const {
  if (types_) {
    auto found = types_->find(tensor.name);
    // Newer files have kv_b_proj in two halves; a head that is tied to the embedding is not there.
    if (const auto at = tensor.name.find("kv_b_proj"); found == types_->end() && at != std::string::npos)
      found = types_->find(std::string(tensor.name).replace(at, 9, "k_b_proj"));
    return found == types_->end() ? weight_type("F32") : *found->second;
  }
  if (gguf_) return gguf_type(config, name_, tensor);
  const bool plain = linear_->block_cols == 1;
  return plain || is_linear(tensor) ? *linear_ : weight_type("BF16");
}

Arithmetic Precision::arithmetic() const {
  if (gguf_) return name_ == "BF16" || name_ == "F16" || name_ == "F32" ? Arithmetic::bf16 : Arithmetic::int8;
  if (linear_->name == "FP8") return Arithmetic::fp8;
  return linear_->name.starts_with("INT8") ? Arithmetic::int8 : Arithmetic::bf16;
}

std::int64_t checkpoint_bytes(const ModelConfig& config, const Precision& precision, bool mtp) {
  std::int64_t bytes = 0;
  for (const ExpectedTensor& t : expected_tensors(config)) {
    const bool copy_in_mtp = t.part == Part::mtp && t.need == Need::never;
    if (t.need == Need::with_fp8_weight || (t.need == Need::never && !copy_in_mtp)) continue;  // factors: of the type
    if (t.part == Part::mtp && (precision.is_gguf() || !mtp)) continue;
    const std::int64_t rows = t.shape.size() > 1 ? t.shape[0] : 1, cols = t.shape.back();
    bytes += precision.type_of(config, t).bytes(rows, cols);
  }
  return bytes;
}

}  // namespace shoal
