#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "runtime/gguf.h"

namespace shoal {

/// A tensor's name in a Hugging Face folder for its name in a GGUF file ("blk.3.attn_q.weight" ->
/// "model.layers.3.self_attn.q_proj.weight"), for the families Shoal runs; unknown names stay as they are. A stack of
/// experts gives "model.layers.3.mlp.experts.{}.gate_proj.weight". The two halves into which newer files split
/// kv_b_proj, for which transformers has no name, become self_attn.k_b_proj and self_attn.v_b_proj.
std::string hugging_face_name(std::string_view gguf_name);

/// The inverse, for writing; empty where GGUF has no name for it. Experts give the name of their stack.
std::string gguf_tensor_name(std::string_view hugging_face_name);

/// A GGUF's tensors as the loader knows them: renamed, and stacks of experts cut into one tensor an expert.
std::vector<TensorInfo> under_hugging_face_names(const Gguf& gguf);

}  // namespace shoal
