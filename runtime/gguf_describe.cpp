#include "runtime/gguf_describe.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "planner/json_fields.h"
#include "runtime/gguf.h"
#include "runtime/gguf_tokenizer.h"
#include "runtime/text/tokenizer.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::uint32_t number(int value) { return static_cast<std::uint32_t>(value); }

/// Keys of one architecture.
class ArchitectureKeys {
 public:
  ArchitectureKeys(GgufHeaderWriter& header, std::string architecture)
      : header_(header), architecture_(std::move(architecture)) {}
  template <class T>
  void add(const char* key, T value) {
    header_.add(architecture_ + "." + key, value);
  }

 private:
  GgufHeaderWriter& header_;
  std::string architecture_;
};

void describe_latent_attention(ArchitectureKeys& keys, const ModelConfig& c) {
  keys.add("attention.head_count_kv", number(1));
  if (c.q_lora_rank > 0) keys.add("attention.q_lora_rank", number(c.q_lora_rank));
  keys.add("attention.kv_lora_rank", number(c.kv_lora_rank));
  keys.add("attention.key_length", number(c.kv_width()));
  keys.add("attention.value_length", number(c.kv_lora_rank));
  keys.add("attention.key_length_mla", number(c.qk_head_dim()));
  keys.add("attention.value_length_mla", number(c.v_head_dim));
  keys.add("rope.dimension_count", number(c.qk_rope_head_dim));
}

void describe_experts(ArchitectureKeys& keys, const ModelConfig& c) {
  keys.add("leading_dense_block_count", number(c.first_k_dense_replace));
  keys.add("expert_count", number(c.n_routed_experts));
  keys.add("expert_used_count", number(c.num_experts_per_tok));
  keys.add("expert_shared_count", number(c.n_shared_experts));
  keys.add("expert_feed_forward_length", number(c.moe_intermediate_size));
  keys.add("expert_weights_scale", c.routed_scaling_factor);
  keys.add("expert_weights_norm", c.norm_topk_prob);
  keys.add("expert_gating_func", std::uint32_t{c.scoring_func == "sigmoid" ? 2u : 1u});
  keys.add("expert_group_count", number(c.n_group));
  keys.add("expert_group_used_count", number(c.topk_group));
}

/// What multiplies the magnitude that programs compute for a file's YaRN by themselves.
float yarn_attn_factor(const ModelConfig& c) {
  if (c.is_mla()) return c.rope_scaling.attn_factor;
  ModelConfig plain = c;
  plain.rope_scaling.attn_factor = 1;
  for (auto* said :
       {&plain.rope_scaling.attention_factor, &plain.rope_scaling.mscale, &plain.rope_scaling.mscale_all_dim})
    said->reset();
  return rope_frequencies(c).magnitude / rope_frequencies(plain).magnitude;
}

void describe_rope(ArchitectureKeys& keys, const ModelConfig& c) {
  keys.add("rope.freq_base", c.rope_theta);
  const RopeScaling& rope = c.rope_scaling;
  if (rope.type == RopeScaling::Type::linear) {
    keys.add("rope.scaling.type", "linear");
    keys.add("rope.scaling.factor", rope.factor);
  } else if (rope.type == RopeScaling::Type::yarn) {
    keys.add("rope.scaling.type", "yarn");
    keys.add("rope.scaling.factor", rope.factor);
    keys.add("rope.scaling.original_context_length", number(rope.original_max_position_embeddings));
    keys.add("rope.scaling.yarn_beta_fast", rope.beta_fast);
    keys.add("rope.scaling.yarn_beta_slow", rope.beta_slow);
    if (c.is_mla()) {
      if (rope.mscale.value_or(0) != rope.mscale_all_dim.value_or(0)) {
        fail("rope_scaling: mscale differs from mscale_all_dim, which a GGUF file cannot say");
      }
      keys.add("rope.scaling.yarn_log_multiplier", 0.1f * rope.mscale_all_dim.value_or(0));
    }
    if (const float factor = yarn_attn_factor(c); factor != 1) keys.add("rope.scaling.attn_factor", factor);
  }
  // Llama 3.1's rule becomes the tensor rope_freqs.weight.
}

std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

/// A special token of tokenizer_config.json: its text, or an AddedToken written out.
std::string token_text(const json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) return "";
  if (it->is_string()) return *it;
  return it->is_object() ? it->value("content", "") : "";
}

void describe_vocabulary(GgufHeaderWriter& header, const ModelConfig& config, const json& tokenizer,
                         const std::string& place) {
  const json& model = tokenizer.at("model");
  std::size_t size = static_cast<std::size_t>(config.vocab_size);
  std::vector<std::string> tokens(size);
  std::vector<std::int32_t> types(size, 5);  // unused
  const auto put = [&](const std::string& text, const json& id, std::int32_t type) {
    const auto at = id.get<std::size_t>();
    if (at >= size) fail("{}: token {} has the id {}, beyond the model's vocabulary of {}", place, text, at, size);
    tokens[at] = text;
    types[at] = type;
  };
  for (const auto& [text, id] : model.at("vocab").items()) put(text, id, 1);
  for (const json& added : tokenizer.value("added_tokens", json::array())) {
    put(added.at("content"), added.at("id"), added.value("special", false) ? 3 : 4);
  }
  for (std::size_t i = 0; i < size; ++i) {
    if (tokens[i].empty()) tokens[i] = fmt::format("[PAD{}]", i);
  }
  std::vector<std::string> merges;
  for (const json& merge : model.value("merges", json::array())) {
    merges.push_back(merge.is_array() ? merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>()
                                      : merge.get<std::string>());
  }
  header.add("tokenizer.ggml.tokens", tokens);
  header.add("tokenizer.ggml.token_type", types);
  header.add("tokenizer.ggml.merges", merges);
}

std::string architecture_of(const ModelConfig& c) {
  if (c.is_mla()) return "deepseek2";
  return c.architecture == Architecture::llama ? "llama" : c.model_type;
}

}  // namespace

void describe_model(GgufHeaderWriter& header, const ModelConfig& c, const std::string& name) {
  const std::string architecture = architecture_of(c);
  header.add("general.architecture", architecture);
  header.add("general.name", name);
  ArchitectureKeys keys(header, architecture);
  keys.add("block_count", number(c.num_hidden_layers));
  keys.add("context_length", number(c.max_position_embeddings));
  keys.add("embedding_length", number(c.hidden_size));
  keys.add("feed_forward_length", number(c.intermediate_size));
  keys.add("vocab_size", number(c.vocab_size));
  keys.add("attention.head_count", number(c.num_attention_heads));
  keys.add("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  if (c.is_mla()) {
    describe_latent_attention(keys, c);
    if (c.n_routed_experts > 0) describe_experts(keys, c);
  } else {
    keys.add("attention.head_count_kv", number(c.num_key_value_heads));
    keys.add("attention.key_length", number(c.head_dim));
    keys.add("attention.value_length", number(c.head_dim));
    keys.add("rope.dimension_count", number(c.head_dim));
  }
  describe_rope(keys, c);
}

namespace {

/// Numbers, texts and lists of them under "tokenizer.". Scores are the only numbers that are not whole.
void copy_tokenizer(GgufHeaderWriter& header, const json& metadata) {
  for (const auto& [key, value] : metadata.items()) {
    if (!key.starts_with("tokenizer.")) continue;
    if (value.is_boolean()) {
      header.add(key, value.get<bool>());
    } else if (value.is_number_integer()) {
      header.add(key, value.get<std::uint32_t>());
    } else if (value.is_number()) {
      header.add(key, value.get<float>());
    } else if (value.is_string()) {
      header.add(key, value.get_ref<const std::string&>());
    } else if (value.is_array() && !value.empty()) {
      if (value.front().is_string()) {
        header.add(key, value.get<std::vector<std::string>>());
      } else if (key.ends_with(".scores")) {
        header.add(key, value.get<std::vector<float>>());
      } else if (value.front().is_number_integer()) {
        header.add(key, value.get<std::vector<std::int32_t>>());
      }
    }
  }
}

}  // namespace

void describe_tokenizer(GgufHeaderWriter& header, const ModelConfig& config, const fs::path& folder) {
  if (is_gguf(folder)) return copy_tokenizer(header, Gguf::open(folder).metadata);
  const fs::path path = folder / "tokenizer.json";
  if (!fs::exists(path)) return;
  const std::string place = path.string();
  const json tokenizer = read_json_file(path, 256u << 20);
  try {
    header.add("tokenizer.ggml.model", "gpt2");
    header.add("tokenizer.ggml.pre", gguf_splitting_rule(tokenizer, place));
    describe_vocabulary(header, config, tokenizer, place);
  } catch (const json::exception& e) {
    fail("{}: is not as a tokenizer.json should be: {}", place, e.what());
  }

  const Tokenizer whole = Tokenizer::from_file(path);
  const auto around = whole.encode("", true);
  json settings = json::object();
  if (const auto file = folder / "tokenizer_config.json"; fs::exists(file)) settings = read_json_file(file, 64u << 20);
  const auto special = [&](const char* key, const char* text_key, std::optional<int> otherwise) -> std::optional<int> {
    const auto named = whole.token_to_id(token_text(settings, text_key));
    const std::optional<int> id = named ? std::optional<int>(*named) : otherwise;
    if (id) header.add(key, number(*id));
    return id;
  };
  const auto bos = special("tokenizer.ggml.bos_token_id", "bos_token", config.bos_token_id);
  const auto eos = special("tokenizer.ggml.eos_token_id", "eos_token",
                           config.eos_token_ids.empty() ? std::optional<int>() : config.eos_token_ids.front());
  special("tokenizer.ggml.padding_token_id", "pad_token", std::nullopt);
  header.add("tokenizer.ggml.add_bos_token", bos && !around.empty() && around.front() == *bos);
  header.add("tokenizer.ggml.add_eos_token", eos && !around.empty() && around.back() == *eos && around.back() != bos);

  std::string chat;
  if (const auto file = folder / "chat_template.jinja"; fs::exists(file)) {
    chat = text_of(file);
  } else if (const auto it = settings.find("chat_template"); it != settings.end() && it->is_string()) {
    chat = *it;
  }
  if (!chat.empty()) header.add("tokenizer.chat_template", chat);
}

}  // namespace shoal
