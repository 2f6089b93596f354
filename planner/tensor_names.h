#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/model_config.h"

namespace shoal {

/// The parts a model's parameters are counted by.
enum class Part { embedding, attention, dense_ffn, routed_experts, shared_experts, router, norms, head, mtp };
constexpr std::size_t part_count = 9;
std::string_view name_of(Part part);

/// When a checkpoint must hold a tensor.
enum class Need {
  always,
  unless_split,     // where its two halves are not stored instead, as newer GGUF files store kv_b_proj
  with_fp8_weight,  // factors of a quantized weight: where that weight is stored as F8_E4M3
  with_mtp_layer,   // where anything of that MTP layer is stored; transformers drops these layers, but keeps
                    // num_nextn_predict_layers
  never             // may be there, and is not needed (copies of what is stored elsewhere)
};

/// A tensor of an architecture under its Hugging Face name.
struct ExpectedTensor {
  std::string name;
  std::vector<std::int64_t> shape;  // a linear weight is [out, in]
  Part part = Part::norms;
  Need need = Need::always;
  int layer = -1;  // -1: outside the layers. MTP layers are numbered on from num_hidden_layers.

  /// Whether the model cannot compute without what it holds; factors of quantized weights and MTP layers aside.
  bool required() const { return need == Need::always || need == Need::unless_split; }
};

/// Every tensor that a checkpoint of this model may hold, in the order of the layers. R1 has 92,000.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

/// Parameters by part. The factors of quantized weights are not counted: they belong to the storage.
struct ParameterCounts {
  std::array<std::int64_t, part_count> by_part{};
  std::int64_t total = 0;   // without MTP, as models are named: R1 has 671 billion
  std::int64_t active = 0;  // that a token is multiplied with, looking up its embedding not counted: R1 37 billion

  std::int64_t operator[](Part part) const { return by_part[static_cast<std::size_t>(part)]; }
};
ParameterCounts count_parameters(const ModelConfig& config, std::span<const ExpectedTensor> tensors);

}  // namespace shoal
