#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "planner/tensor_names.h"
#include "planner/weight_types.h"

namespace shoal {

/// What a tensor is to the rules of a GGUF mix.
enum class GgufRole { token_embd, output, attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, other };
GgufRole gguf_role(const ExpectedTensor& tensor);

/// Whether `name` is a mix: a file type of llama-quantize ("Q4_K_M", "IQ2_XXS") or one of Unsloth's for R1
/// ("UD-IQ1_S").
bool is_gguf_mix(std::string_view name);

/// The type of a tensor of `config` in a file of the mix, as llama.cpp (src/llama-quant.cpp) chooses it: norms, biases
/// and the router stay F32, the others get the mix's type or the one its rules make of it; a row that the type's blocks
/// do not divide gets a type of smaller blocks. An importance matrix is taken to be there for IQ1, IQ2 and IQ3_XXS,
/// which need one, and for no other.
const WeightType& gguf_type(const ModelConfig& config, std::string_view mix, const ExpectedTensor& tensor);
/// The same for one of the halves that kv_b_proj is in where a file has them apart, with rows of `cols` elements:
/// llama.cpp's rules for values then do not hold.
const WeightType& gguf_half_type(const ModelConfig& config, std::string_view mix, const ExpectedTensor& tensor,
                                 std::int64_t cols);

/// `type`, or where its blocks do not divide rows of `cols` elements the type that llama.cpp puts in its place.
std::string_view fitting_gguf_type(std::string_view type, std::int64_t cols);

}  // namespace shoal
