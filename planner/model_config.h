#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "planner/json_fields.h"

namespace shoal {

/// The families of layers Shoal runs: multi-head latent attention with experts (DeepSeek-V2, V3, R1), and grouped-query
/// attention with dense feed-forward blocks (DeepSeek V1 67B, Llama, Qwen2, Qwen3).
enum class Architecture { deepseek_v3, deepseek_v2, qwen2, qwen3, llama };

/// Rotary position scaling. `yarn`: arXiv 2309.00071; `llama3`: the rule of Llama 3.1; `linear`: position / factor;
/// `factors`: a divisor for each frequency, as GGUF stores llama3's result.
struct RopeScaling {
  enum class Type { none, linear, llama3, yarn, factors };
  Type type = Type::none;
  float factor = 1;
  int original_max_position_embeddings = 0;
  float beta_fast = 32, beta_slow = 1;              // yarn
  std::optional<float> mscale, mscale_all_dim;      // yarn, DeepSeek
  std::optional<float> attention_factor;            // yarn, overrides the computed magnitude
  float attn_factor = 1;                            // yarn, multiplies the computed magnitude
  bool truncate = true;                             // yarn: round the correction range to whole dimensions
  float low_freq_factor = 1, high_freq_factor = 4;  // llama3
  std::vector<float> factors;                       // [head_dim / 2]
};

/// How the checkpoint's linear weights are quantized, if they are.
struct WeightQuantization {
  std::string method;                  // "fp8", "int8", "awq", "gptq", "compressed-tensors"
  int block_rows = 0, block_cols = 0;  // fp8, int8: that share a scale; 0: one a row
  int bits = 8;
  int group_size = 0;      // awq, gptq, compressed-tensors: inputs that share a scale; 0: all
  int zero_offset = 0;     // gptq: what is added to a stored zero
  bool act_order = false;  // gptq: inputs that share a scale lie anywhere
};

/// What `config.json` says, in R1's own names where it has them. Fields a family lacks stay at their defaults.
struct ModelConfig {
  Architecture architecture = Architecture::deepseek_v3;
  std::string model_type;  // as spelled in the file
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int vocab_size = 0;
  int intermediate_size = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  float rope_theta = 10000;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // qwen2: q, k, v; others with attention_bias: q, k, v, o
  bool attention_output_bias = false;
  bool mlp_bias = false;
  std::vector<int> eos_token_ids;  // from generation_config.json too
  std::optional<int> bos_token_id;
  std::string torch_dtype;

  // Grouped-query attention.
  int head_dim = 0;
  bool qk_norm = false;  // qwen3: each head's query and key are normed before they are rotated

  // Multi-head latent attention.
  int q_lora_rank = 0;  // 0: queries are projected directly (V2-Lite)
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0;
  int qk_rope_head_dim = 0;
  int v_head_dim = 0;
  bool rope_interleave = true;  // rotated pairs are neighbours; for grouped-query attention too (GGUF's Llama)

  // Mixture of experts.
  int n_routed_experts = 0;  // 0: dense
  int n_shared_experts = 0;
  int num_experts_per_tok = 0;
  int moe_intermediate_size = 0;
  int first_k_dense_replace = 0;
  int moe_layer_freq = 1;
  int n_group = 1, topk_group = 1;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1;
  std::string scoring_func;          // "sigmoid", "softmax"
  std::string topk_method;           // "noaux_tc", "group_limited_greedy", "greedy"
  int num_nextn_predict_layers = 0;  // MTP layers, stored behind the last layer

  std::optional<WeightQuantization> quantization;

  bool is_mla() const { return kv_lora_rank > 0; }
  bool is_moe_layer(int layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  /// Elements of KV cache per token and layer.
  int kv_width() const { return is_mla() ? kv_lora_rank + qk_rope_head_dim : 2 * num_key_value_heads * head_dim; }

  /// Reads `config.json` (a file or a folder that holds one), with `generation_config.json` beside it. Both spellings
  /// of rope settings (`rope_scaling` + `rope_theta`, `rope_parameters`) are read. Every field is checked (present
  /// where the family needs it, in range, consistent); Error names file and field.
  static ModelConfig from_file(const std::filesystem::path& path);
  /// The same for a `config.json` in memory; `place` is what messages call it.
  static ModelConfig from_json(const nlohmann::json& document, const std::string& place,
                               const std::optional<JsonFields>& generation = {});
};

/// Inverse frequencies [rope_dim / 2] after scaling, in FP32 as transformers computes them, and the factor that
/// multiplies cos and sin.
struct RopeFrequencies {
  std::vector<float> inv_freq;
  float magnitude = 1;
};
RopeFrequencies rope_frequencies(const ModelConfig& config);

/// The factor on q k: 1 / sqrt(head dim), for DeepSeek with YaRN times mscale(factor, mscale_all_dim)^2.
float attention_scale(const ModelConfig& config);

}  // namespace shoal
