#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "planner/cluster.h"
#include "planner/model_config.h"
#include "planner/tensor_names.h"
#include "planner/weight_types.h"

namespace shoal {

/// How the weights of a model are stored.
///   bf16, f16, f32   every matrix in that type
///   fp8              as R1 is published: linear layers E4M3 in blocks of 128 x 128, embedding, head and router BF16
///   int8, int4       linear layers in groups of 128 along a row (int4-g32: of 32), embedding, head and router BF16
///   Q4_K_M ...       a mix of llama-quantize
///   UD-IQ1_S ...     Unsloth's dynamic mixes of R1
class Precision {
 public:
  /// Error (wrong usage) names what there is.
  static Precision from_name(const std::string& name);
  /// What the checkpoint that a configuration comes from holds.
  static Precision of_config(const ModelConfig& config);
  /// What a GGUF file holds: the type of each tensor, by its Hugging Face name.
  static Precision of_tensors(std::string name, std::map<std::string, const WeightType*, std::less<>> types);

  const std::string& name() const { return name_; }
  bool is_gguf() const { return gguf_; }
  /// The type that a tensor is stored in. Vectors of a Hugging Face checkpoint are BF16 (F32 in f32), of a GGUF file
  /// F32.
  const WeightType& type_of(const ModelConfig& config, const ExpectedTensor& tensor) const;
  /// What the products of quantized weights are computed in, where the device can.
  Arithmetic arithmetic() const;

 private:
  std::string name_;
  bool gguf_ = false;
  std::shared_ptr<const std::map<std::string, const WeightType*, std::less<>>> types_;  // of of_tensors
  const WeightType* linear_ = nullptr;  // of linear layers, and of all else where it is no quantized type
};

/// Bytes of a checkpoint's tensors. A GGUF file has no MTP layer; a Hugging Face folder has it with its copies of
/// embedding and head, which are left out where `mtp` is false.
std::int64_t checkpoint_bytes(const ModelConfig& config, const Precision& precision, bool mtp = true);

}  // namespace shoal
