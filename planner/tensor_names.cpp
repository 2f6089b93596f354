#include "planner/tensor_names.h"

#include <fmt/format.h>

#include <functional>
#include <numeric>

namespace shoal {
namespace {

/// Appends the tensors of one module after the other.
class TensorList {
 public:
  explicit TensorList(const ModelConfig& config) : c_(config) {}

  std::vector<ExpectedTensor> take() { return std::move(list_); }

  void outer() {
    add("model.embed_tokens.weight", {c_.vocab_size, c_.hidden_size}, Part::embedding);
    add("model.norm.weight", {c_.hidden_size}, Part::norms);
    // With tied embeddings the head is the embedding; older files store it once more.
    const bool tied = c_.tie_word_embeddings;
    add("lm_head.weight", {c_.vocab_size, c_.hidden_size}, Part::head, tied ? Need::never : Need::always);
    // GGUF's form of Llama 3.1's rotation.
    if (!c_.is_mla()) add("rope_freqs.weight", {c_.head_dim / 2}, Part::norms, Need::never);
  }

  void layer(int index) {
    layer_ = index;
    prefix_ = fmt::format("model.layers.{}.", index);
    add(prefix_ + "input_layernorm.weight", {c_.hidden_size}, Part::norms);
    add(prefix_ + "post_attention_layernorm.weight", {c_.hidden_size}, Part::norms);
    if (c_.is_mla()) {
      latent_attention();
    } else {
      grouped_attention();
      // A buffer that old versions of transformers stored.
      add(prefix_ + "self_attn.rotary_emb.inv_freq", {c_.head_dim / 2}, Part::attention, Need::never);
    }
    if (c_.is_moe_layer(index)) {
      experts();
    } else {
      feed_forward(prefix_ + "mlp.", c_.intermediate_size, Part::dense_ffn);
    }
    layer_ = -1;
  }

  /// A layer that predicts one token further (arXiv 2412.19437, section 2.2): the model's own kind of layer, behind a
  /// projection of the last hidden state joined with the next token's embedding.
  void mtp_layer(int index) {
    mtp_ = true;
    layer(index);
    layer_ = index;
    add(prefix_ + "enorm.weight", {c_.hidden_size}, Part::mtp);
    add(prefix_ + "hnorm.weight", {c_.hidden_size}, Part::mtp);
    linear(prefix_ + "eh_proj", c_.hidden_size, 2 * std::int64_t{c_.hidden_size}, Part::mtp);
    add(prefix_ + "shared_head.norm.weight", {c_.hidden_size}, Part::mtp);
    // Copies of the model's own.
    add(prefix_ + "embed_tokens.weight", {c_.vocab_size, c_.hidden_size}, Part::mtp, Need::never);
    add(prefix_ + "shared_head.head.weight", {c_.vocab_size, c_.hidden_size}, Part::mtp, Need::never);
    layer_ = -1;
    mtp_ = false;
  }

 private:
  void latent_attention() {
    const std::string p = prefix_ + "self_attn.";
    const std::int64_t heads = c_.num_attention_heads;
    if (c_.q_lora_rank == 0) {
      linear(p + "q_proj", heads * c_.qk_head_dim(), c_.hidden_size, Part::attention);
    } else {
      linear(p + "q_a_proj", c_.q_lora_rank, c_.hidden_size, Part::attention, c_.attention_bias);
      add(p + "q_a_layernorm.weight", {c_.q_lora_rank}, Part::norms);
      linear(p + "q_b_proj", heads * c_.qk_head_dim(), c_.q_lora_rank, Part::attention);
    }
    linear(p + "kv_a_proj_with_mqa", c_.kv_width(), c_.hidden_size, Part::attention, c_.attention_bias);
    add(p + "kv_a_layernorm.weight", {c_.kv_lora_rank}, Part::norms);
    linear(p + "kv_b_proj", heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank, Part::attention, false,
           Need::unless_split);
    if (!mtp_) {
      add(p + "k_b_proj.weight", {heads, c_.kv_lora_rank, c_.qk_nope_head_dim}, Part::attention, Need::never);
      add(p + "v_b_proj.weight", {heads, c_.v_head_dim, c_.kv_lora_rank}, Part::attention, Need::never);
    }
    linear(p + "o_proj", c_.hidden_size, heads * c_.v_head_dim, Part::attention, c_.attention_output_bias);
  }

  void grouped_attention() {
    const std::string p = prefix_ + "self_attn.";
    const std::int64_t q_rows = std::int64_t{c_.num_attention_heads} * c_.head_dim;
    const std::int64_t kv_rows = std::int64_t{c_.num_key_value_heads} * c_.head_dim;
    linear(p + "q_proj", q_rows, c_.hidden_size, Part::attention, c_.attention_bias);
    linear(p + "k_proj", kv_rows, c_.hidden_size, Part::attention, c_.attention_bias);
    linear(p + "v_proj", kv_rows, c_.hidden_size, Part::attention, c_.attention_bias);
    linear(p + "o_proj", c_.hidden_size, q_rows, Part::attention, c_.attention_output_bias);
    if (c_.qk_norm) {
      add(p + "q_norm.weight", {c_.head_dim}, Part::norms);
      add(p + "k_norm.weight", {c_.head_dim}, Part::norms);
    }
  }

  void experts() {
    const std::string p = prefix_ + "mlp.";
    add(p + "gate.weight", {c_.n_routed_experts, c_.hidden_size}, Part::router);
    if (c_.topk_method == "noaux_tc") add(p + "gate.e_score_correction_bias", {c_.n_routed_experts}, Part::router);
    for (int e = 0; e < c_.n_routed_experts; ++e) {
      feed_forward(fmt::format("{}experts.{}.", p, e), c_.moe_intermediate_size, Part::routed_experts);
    }
    if (c_.n_shared_experts > 0) {
      feed_forward(p + "shared_experts.", std::int64_t{c_.moe_intermediate_size} * c_.n_shared_experts,
                   Part::shared_experts);
    }
  }

  void feed_forward(const std::string& p, std::int64_t intermediate, Part part) {
    linear(p + "gate_proj", intermediate, c_.hidden_size, part);
    linear(p + "up_proj", intermediate, c_.hidden_size, part);
    linear(p + "down_proj", c_.hidden_size, intermediate, part);
  }

  void linear(const std::string& name, std::int64_t out, std::int64_t in, Part part, bool bias = false,
              Need need = Need::always) {
    add(name + ".weight", {out, in}, part, need);
    if (bias) add(name + ".bias", {out}, part);
    if (c_.quantization && c_.quantization->block_rows > 0) {
      const auto blocks = [](std::int64_t n, std::int64_t block) { return (n + block - 1) / block; };
      add(name + ".weight_scale_inv",
          {blocks(out, c_.quantization->block_rows), blocks(in, c_.quantization->block_cols)}, part,
          Need::with_fp8_weight);
    }
  }

  void add(std::string name, std::vector<std::int64_t> shape, Part part, Need need = Need::always) {
    if (mtp_) part = Part::mtp;
    if (mtp_ && (need == Need::always || need == Need::unless_split)) need = Need::with_mtp_layer;
    list_.push_back({std::move(name), std::move(shape), part, need, layer_});
  }

  const ModelConfig& c_;
  std::vector<ExpectedTensor> list_;
  std::string prefix_;
  int layer_ = -1;
  bool mtp_ = false;
};

}  // namespace

std::string_view name_of(Part part) {
  switch (part) {
    case Part::embedding:
      return "embedding";
    case Part::attention:
      return "attention";
    case Part::dense_ffn:
      return "dense FFN";
    case Part::routed_experts:
      return "routed experts";
    case Part::shared_experts:
      return "shared experts";
    case Part::router:
      return "router";
    case Part::norms:
      return "norms";
    case Part::head:
      return "head";
    case Part::mtp:
      return "MTP";
  }
  return "?";
}

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config) {
  TensorList list(config);
  list.outer();
  for (int i = 0; i < config.num_hidden_layers; ++i) list.layer(i);
  for (int i = 0; i < config.num_nextn_predict_layers; ++i) list.mtp_layer(config.num_hidden_layers + i);
  return list.take();
}

ParameterCounts count_parameters(const ModelConfig& config, std::span<const ExpectedTensor> tensors) {
  ParameterCounts counts;
  for (const ExpectedTensor& tensor : tensors) {
    const bool counted = tensor.required() || tensor.part == Part::mtp;
    if (!counted || tensor.need == Need::with_fp8_weight) continue;
    counts.by_part[static_cast<std::size_t>(tensor.part)] +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), std::int64_t{1}, std::multiplies<>());
  }
  counts.total = std::accumulate(counts.by_part.begin(), counts.by_part.end(), std::int64_t{0}) - counts[Part::mtp];
  counts.active = counts.total;
  if (!config.tie_word_embeddings) counts.active -= counts[Part::embedding];
  if (config.n_routed_experts > 0) {
    const std::int64_t routed = counts[Part::routed_experts];
    counts.active -= routed - routed / config.n_routed_experts * config.num_experts_per_tok;
  }
  return counts;
}

}  // namespace shoal
