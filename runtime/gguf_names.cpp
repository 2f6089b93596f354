#include "runtime/gguf_names.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

#include "base/error.h"

namespace shoal {
namespace {

struct NamePair {
  std::string_view gguf, hugging_face;
};

constexpr std::array kOuter = {
    NamePair{"token_embd.weight", "model.embed_tokens.weight"},
    NamePair{"output_norm.weight", "model.norm.weight"},
    NamePair{"output.weight", "lm_head.weight"},
};

/// Of modules inside a layer, without ".weight" or ".bias".
constexpr std::array kInLayer = {
    NamePair{"attn_norm", "input_layernorm"},
    NamePair{"attn_q", "self_attn.q_proj"},
    NamePair{"attn_k", "self_attn.k_proj"},
    NamePair{"attn_v", "self_attn.v_proj"},
    NamePair{"attn_output", "self_attn.o_proj"},
    NamePair{"attn_q_norm", "self_attn.q_norm"},
    NamePair{"attn_k_norm", "self_attn.k_norm"},
    NamePair{"attn_q_a", "self_attn.q_a_proj"},
    NamePair{"attn_q_a_norm", "self_attn.q_a_layernorm"},
    NamePair{"attn_q_b", "self_attn.q_b_proj"},
    NamePair{"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    NamePair{"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    NamePair{"attn_kv_b", "self_attn.kv_b_proj"},
    NamePair{"attn_k_b", "self_attn.k_b_proj"},
    NamePair{"attn_v_b", "self_attn.v_b_proj"},
    NamePair{"ffn_norm", "post_attention_layernorm"},
    NamePair{"ffn_gate", "mlp.gate_proj"},
    NamePair{"ffn_up", "mlp.up_proj"},
    NamePair{"ffn_down", "mlp.down_proj"},
    NamePair{"ffn_gate_inp", "mlp.gate"},
    NamePair{"ffn_gate_exps", "mlp.experts.{}.gate_proj"},
    NamePair{"ffn_up_exps", "mlp.experts.{}.up_proj"},
    NamePair{"ffn_down_exps", "mlp.experts.{}.down_proj"},
    NamePair{"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    NamePair{"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    NamePair{"ffn_down_shexp", "mlp.shared_experts.down_proj"},
    // MTP layers.
    NamePair{"nextn.eh_proj", "eh_proj"},
    NamePair{"nextn.embed_tokens", "embed_tokens"},
    NamePair{"nextn.enorm", "enorm"},
    NamePair{"nextn.hnorm", "hnorm"},
    NamePair{"nextn.shared_head_head", "shared_head.head"},
    NamePair{"nextn.shared_head_norm", "shared_head.norm"},
};

// The router's bias is a parameter of its own in transformers, a module's bias in GGUF.
constexpr NamePair kRouterBias = {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"};

constexpr std::string_view kExpert = ".{}.";

/// "blk.3.attn_q.weight" with the prefix "blk." -> 3, "attn_q.weight".
struct InLayer {
  int layer;
  std::string_view rest;
};
std::optional<InLayer> in_layer(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  InLayer result{};
  const auto [end, problem] = std::from_chars(name.data(), name.data() + name.size(), result.layer);
  const auto digits = static_cast<std::size_t>(end - name.data());
  if (problem != std::errc{} || digits == name.size() || name[digits] != '.') return std::nullopt;
  result.rest = name.substr(digits + 1);
  return result;
}

/// "attn_q.weight" -> "attn_q", ".weight".
std::pair<std::string_view, std::string_view> split_suffix(std::string_view name) {
  const auto dot = name.rfind('.');
  return dot == name.npos ? std::pair(name, std::string_view()) : std::pair(name.substr(0, dot), name.substr(dot));
}

template <std::size_t n>
const NamePair* find(const std::array<NamePair, n>& pairs, std::string_view NamePair::*side, std::string_view name) {
  const auto it = std::find_if(pairs.begin(), pairs.end(), [&](const NamePair& p) { return p.*side == name; });
  return it == pairs.end() ? nullptr : &*it;
}

/// Expert `index` of a stack [experts, rows, cols].
TensorInfo expert_of(const TensorInfo& stack, std::int64_t index) {
  TensorInfo expert = stack;
  const std::int64_t count = stack.shape.front();
  expert.shape.erase(expert.shape.begin());
  expert.bytes = stack.bytes / static_cast<std::uint64_t>(count);
  expert.offset = stack.offset + static_cast<std::uint64_t>(index) * expert.bytes;
  expert.name.replace(stack.name.find(kExpert), kExpert.size(), fmt::format(".{}.", index));
  return expert;
}

}  // namespace

std::string hugging_face_name(std::string_view name) {
  if (const NamePair* outer = find(kOuter, &NamePair::gguf, name)) return std::string(outer->hugging_face);
  const auto inner = in_layer(name, "blk.");
  if (!inner) return std::string(name);
  const std::string prefix = fmt::format("model.layers.{}.", inner->layer);
  if (inner->rest == kRouterBias.gguf) return prefix + std::string(kRouterBias.hugging_face);
  const auto [module, suffix] = split_suffix(inner->rest);
  const NamePair* pair = find(kInLayer, &NamePair::gguf, module);
  return pair ? fmt::format("{}{}{}", prefix, pair->hugging_face, suffix) : std::string(name);
}

std::string gguf_tensor_name(std::string_view name) {
  if (const NamePair* outer = find(kOuter, &NamePair::hugging_face, name)) return std::string(outer->gguf);
  const auto inner = in_layer(name, "model.layers.");
  if (!inner) return "";
  const std::string prefix = fmt::format("blk.{}.", inner->layer);
  if (inner->rest == kRouterBias.hugging_face) return prefix + std::string(kRouterBias.gguf);
  const auto [module, suffix] = split_suffix(inner->rest);
  std::string wanted(module);
  if (const auto expert = in_layer(module, "mlp.experts.")) wanted = fmt::format("mlp.experts.{{}}.{}", expert->rest);
  const NamePair* pair = find(kInLayer, &NamePair::hugging_face, wanted);
  return pair ? fmt::format("{}{}{}", prefix, pair->gguf, suffix) : "";
}

std::vector<TensorInfo> under_hugging_face_names(const Gguf& gguf) {
  std::vector<TensorInfo> renamed;
  for (const TensorInfo& tensor : gguf.tensors) {
    TensorInfo copy = tensor;
    copy.name = hugging_face_name(tensor.name);
    if (copy.name.find(kExpert) == std::string::npos) {
      renamed.push_back(std::move(copy));
      continue;
    }
    if (tensor.shape.size() != 3 || tensor.bytes == 0) {
      fail("{}: tensor {} must be a stack of experts, and has the shape [{}]", gguf.place(), tensor.name,
           fmt::join(tensor.shape, ", "));
    }
    if (tensor.shape.front() > 1 << 12)
      fail("{}: tensor {} has {} experts", gguf.place(), tensor.name, tensor.shape.front());
    // R1 has 44,544 such matrices; a file that claims many more in few bytes would take memory by its claims alone.
    if (renamed.size() > 1u << 19) fail("{}: has more than {} matrices of experts", gguf.place(), 1 << 19);
    for (std::int64_t e = 0; e < tensor.shape.front(); ++e) renamed.push_back(expert_of(copy, e));
  }
  return renamed;
}

}  // namespace shoal
