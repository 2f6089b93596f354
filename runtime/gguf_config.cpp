#include "runtime/gguf_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "planner/json_fields.h"
#include "runtime/input_file.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr std::int64_t kMost = INT32_MAX;

/// Metadata of one architecture, whose keys begin with its name.
class Keys {
 public:
  explicit Keys(const Gguf& gguf) : fields_(gguf.metadata, gguf.place()) {
    architecture_ = fields_.string_or("general.architecture", "");
    if (architecture_.empty()) fields_.reject("general.architecture", "is missing");
  }

  const std::string& architecture() const { return architecture_; }
  const JsonFields& all() const { return fields_; }
  std::string name(const char* key) const { return architecture_ + "." + key; }

  bool has(const char* key) const { return fields_.has(name(key).c_str()); }
  int integer(const char* key) const { return fields_.integer(name(key).c_str(), 0, kMost); }
  int integer_or(const char* key, int fallback) const { return has(key) ? integer(key) : fallback; }
  std::optional<float> number(const char* key) const { return fields_.number(name(key).c_str()); }
  bool boolean_or(const char* key, bool fallback) const { return fields_.boolean_or(name(key).c_str(), fallback); }
  std::string string_or(const char* key, const char* fallback) const {
    return fields_.string_or(name(key).c_str(), fallback);
  }
  [[noreturn]] void reject(const char* key, std::string_view what) const { fields_.reject(name(key), what); }

 private:
  JsonFields fields_;
  std::string architecture_;
};

void copy(json& config, const char* to, const Keys& keys, const char* from) {
  if (keys.has(from)) config[to] = keys.integer(from);
}
void copy_number(json& config, const char* to, const Keys& keys, const char* from) {
  if (const auto value = keys.number(from)) config[to] = *value;
}

json latent_attention(const Keys& keys) {
  json c = json::object();
  c["q_lora_rank"] = nullptr;  // queries are projected directly
  copy(c, "q_lora_rank", keys, "attention.q_lora_rank");
  copy(c, "kv_lora_rank", keys, "attention.kv_lora_rank");
  // Where the absorbed form is described (key_length = kv_lora_rank + rope), the true lengths have keys of their own.
  const int key = keys.integer_or("attention.key_length_mla", keys.integer_or("attention.key_length", 0));
  const int rope = keys.integer("rope.dimension_count");
  if (key <= rope)
    keys.reject("attention.key_length", fmt::format("is {}, not above rope.dimension_count {}", key, rope));
  c["qk_rope_head_dim"] = rope;
  c["qk_nope_head_dim"] = key - rope;
  c["v_head_dim"] = keys.integer_or("attention.value_length_mla", keys.integer_or("attention.value_length", 0));
  return c;
}

enum Gating { none = 0, softmax = 1, sigmoid = 2 };

json experts(const Keys& keys, Gating gating) {
  json c = json::object();
  const int count = keys.integer_or("expert_count", 0);
  if (count == 0) return json{{"n_routed_experts", nullptr}};
  c["n_routed_experts"] = count;
  c["n_shared_experts"] = keys.integer_or("expert_shared_count", 0);
  copy(c, "num_experts_per_tok", keys, "expert_used_count");
  copy(c, "moe_intermediate_size", keys, "expert_feed_forward_length");
  c["first_k_dense_replace"] = keys.integer_or("leading_dense_block_count", 0);
  // A factor of zero stands for none.
  const float scale = keys.number("expert_weights_scale").value_or(0);
  c["routed_scaling_factor"] = scale == 0 ? 1 : scale;
  c["norm_topk_prob"] = keys.boolean_or("expert_weights_norm", false);
  c["scoring_func"] = gating == sigmoid ? "sigmoid" : "softmax";
  // Files of V3 and R1 from before these keys existed: the models were trained with 4 of 8 groups (arXiv 2412.19437).
  const bool unnamed_v3 = gating == sigmoid && count == 256 && !keys.has("expert_group_count");
  const int groups = std::max(1, keys.integer_or("expert_group_count", unnamed_v3 ? 8 : 1));
  c["n_group"] = groups;
  c["topk_group"] = std::max(1, keys.integer_or("expert_group_used_count", unnamed_v3 ? 4 : groups));
  c["topk_method"] = gating == sigmoid ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  return c;
}

json grouped_attention(const Keys& keys, const Gguf& gguf, int hidden, int heads) {
  json c = json::object();
  copy(c, "num_key_value_heads", keys, "attention.head_count_kv");
  const int dim = keys.integer_or("attention.key_length", heads > 0 ? hidden / heads : 0);
  const int rotated = keys.integer_or("rope.dimension_count", dim);
  if (rotated != dim)
    keys.reject("rope.dimension_count", fmt::format("is {} of {}; rotating a part is not supported", rotated, dim));
  if (keys.integer_or("attention.value_length", dim) != dim)
    keys.reject("attention.value_length", "differs from key_length");
  if (keys.integer_or("expert_count", 0) > 0) keys.reject("expert_count", "is not supported for this architecture");
  c["head_dim"] = dim;
  c["attention_bias"] = gguf.find("blk.0.attn_q.bias") != nullptr;
  return c;
}

json rope_scaling(const Keys& keys, bool latent) {
  const auto old_factor = keys.number("rope.scale_linear");
  const std::string type = keys.string_or("rope.scaling.type", old_factor ? "linear" : "none");
  if (type == "none") return nullptr;
  json r = {{"rope_type", type}, {"factor", keys.number("rope.scaling.factor").value_or(old_factor.value_or(1))}};
  if (type == "linear") return r;
  if (type != "yarn")
    keys.reject("rope.scaling.type", fmt::format("\"{}\" is not supported (linear and yarn are)", type));
  copy(r, "original_max_position_embeddings", keys, "rope.scaling.original_context_length");
  copy_number(r, "beta_fast", keys, "rope.scaling.yarn_beta_fast");
  copy_number(r, "beta_slow", keys, "rope.scaling.yarn_beta_slow");
  // As llama.cpp reads a file: attn_factor multiplies the magnitude it computes, and yarn_attn_factor, as which its
  // converter writes a configuration's attention_factor or attn_factor, counts for nothing.
  if (const auto mix = keys.number("rope.scaling.yarn_ext_factor"); mix && *mix >= 0 && *mix != 1)
    keys.reject("rope.scaling.yarn_ext_factor", fmt::format("is {}; only 1 is supported", *mix));
  copy_number(r, "attn_factor", keys, "rope.scaling.attn_factor");
  if (latent) {
    // The key holds 0.1 * mscale_all_dim. DeepSeek's mscale equals it, so that rotated parts keep their length.
    const float mscale = 10 * keys.number("rope.scaling.yarn_log_multiplier").value_or(0);
    r["mscale"] = r["mscale_all_dim"] = mscale;
    if (mscale == 0) r["attention_factor"] = 1;
  }
  return r;
}

/// Ids that end an answer: those the metadata name, and those whose text says so, since older files name only one.
json end_tokens(const JsonFields& fields) {
  std::set<std::int64_t> ids;
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    for (const auto id : fields.integers(key)) ids.insert(id);
  }
  if (const json* tokens = fields.find("tokenizer.ggml.tokens"); tokens && tokens->is_array()) {
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      const json& token = (*tokens)[i];
      if (token == "<|eot_id|>" || token == "<|eom_id|>" || token == "<|im_end|>")
        ids.insert(static_cast<std::int64_t>(i));
    }
  }
  return ids;
}

json outer(const Keys& keys, const Gguf& gguf) {
  const TensorInfo* embedding = gguf.find("token_embd.weight");
  if (!embedding || embedding->shape.size() != 2)
    fail("{}: tensor token_embd.weight is missing, or is no matrix", gguf.place());
  const int nextn = keys.integer_or("nextn_predict_layers", 0);
  json c = {{"hidden_size", keys.integer("embedding_length")},
            {"num_hidden_layers", keys.integer("block_count") - nextn},
            {"vocab_size", embedding->shape[0]},
            {"intermediate_size", keys.integer("feed_forward_length")},
            {"num_attention_heads", keys.integer("attention.head_count")},
            {"max_position_embeddings", keys.integer("context_length")},
            {"tie_word_embeddings", gguf.find("output.weight") == nullptr},
            {"num_nextn_predict_layers", nextn}};
  copy_number(c, "rms_norm_eps", keys, "attention.layer_norm_rms_epsilon");
  copy_number(c, "rope_theta", keys, "rope.freq_base");
  c["eos_token_id"] = end_tokens(keys.all());
  const auto bos = keys.all().integers("tokenizer.ggml.bos_token_id");
  c["bos_token_id"] = bos.empty() ? json(nullptr) : json(bos.front());
  return c;
}

/// Llama 3.1's scaling is stored as what each frequency is divided by.
void read_rope_factors(ModelConfig& config, const Gguf& gguf) {
  const TensorInfo* factors = gguf.find("rope_freqs.weight");
  if (!factors) return;
  const auto pairs = static_cast<std::size_t>(config.head_dim / 2);
  if (factors->type != "F32" || factors->shape != std::vector<std::int64_t>{static_cast<std::int64_t>(pairs)}) {
    fail("{}: tensor rope_freqs.weight must be F32 with {} elements", gguf.place(), pairs);
  }
  std::vector<float> values(pairs);
  InputFile(gguf.files[static_cast<std::size_t>(factors->file)])
      .read(factors->offset, std::as_writable_bytes(std::span(values)), ": tensor rope_freqs.weight");
  for (const float value : values) {
    if (!(value > 0)) fail("{}: tensor rope_freqs.weight holds {}, and must be above zero", gguf.place(), value);
  }
  if (config.rope_scaling.type != RopeScaling::Type::none) {
    fail("{}: scales rotation both by its metadata and by the tensor rope_freqs.weight", gguf.place());
  }
  config.rope_scaling.type = RopeScaling::Type::factors;
  config.rope_scaling.factors = std::move(values);
}

}  // namespace

ModelConfig gguf_model_config(const Gguf& gguf) {
  const Keys keys(gguf);
  const std::string& architecture = keys.architecture();
  const bool latent = architecture == "deepseek2";
  if (!latent && architecture != "llama" && architecture != "qwen2" && architecture != "qwen3") {
    keys.all().reject("general.architecture",
                      fmt::format("\"{}\" is not supported (deepseek2, llama, qwen2 and qwen3 are)", architecture));
  }
  json config = outer(keys, gguf);
  config["rope_scaling"] = rope_scaling(keys, latent);
  if (latent) {
    const int gating = keys.integer_or("expert_gating_func", none);
    if (gating > sigmoid) {
      keys.reject("expert_gating_func", fmt::format("is {}; 1 (softmax) and 2 (sigmoid) are supported", gating));
    }
    config["model_type"] = gating == sigmoid ? "deepseek_v3" : "deepseek_v2";
    config.update(latent_attention(keys));
    config.update(experts(keys, static_cast<Gating>(gating)));
  } else {
    config["model_type"] = architecture;
    config.update(grouped_attention(keys, gguf, config["hidden_size"], config["num_attention_heads"]));
  }

  ModelConfig result = ModelConfig::from_json(config, gguf.place());
  // Llama's query and key rows are reordered in GGUF so that rotated pairs lie side by side; Qwen's are not.
  if (architecture == "llama") result.rope_interleave = true;
  if (!latent) read_rope_factors(result, gguf);
  return result;
}

}  // namespace shoal
