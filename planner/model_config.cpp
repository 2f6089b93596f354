#include "planner/model_config.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "planner/json_fields.h"

namespace shoal {
namespace {

// Bounds far above every real model, low enough that products of a few dimensions stay within 64 bits and that lists
// with an entry per layer and expert stay small.
constexpr std::int64_t max_width = 1 << 20;
constexpr std::int64_t max_vocab = 1 << 24;
constexpr std::int64_t max_layers = 1 << 12;
constexpr std::int64_t max_experts = 1 << 12;
constexpr std::int64_t max_experts_of_all_layers = 1 << 17;  // each is a few tensors with a name; R1 has 15,616
constexpr std::int64_t max_context = 1 << 30;

/// What transformers' config classes assume where the file says nothing (configuration_<family>.py). Dimensions have
/// defaults there too, but a file without them describes no model; they are required here.
struct FamilyDefaults {
  Architecture architecture;
  int max_position_embeddings;
  std::optional<int> bos_token_id;
  std::optional<int> eos_token_id;
};

FamilyDefaults family_of(const JsonFields& json) {
  const std::string type = json.string_or("model_type", "");
  if (type == "deepseek_v3") return {Architecture::deepseek_v3, 4096, 0, 1};
  if (type == "deepseek_v2") return {Architecture::deepseek_v2, 2048, 1, 2};
  if (type == "qwen2") return {Architecture::qwen2, 32768, std::nullopt, std::nullopt};
  if (type == "qwen3") return {Architecture::qwen3, 32768, std::nullopt, std::nullopt};
  if (type == "llama") return {Architecture::llama, 2048, 1, 2};
  if (type.empty()) json.reject("model_type", "is missing");
  json.reject("model_type",
              fmt::format("\"{}\" is not supported (deepseek_v3, deepseek_v2, qwen2, qwen3 and llama are)", type));
}

void read_dimensions(ModelConfig& c, const JsonFields& json, const FamilyDefaults& family) {
  c.hidden_size = json.integer("hidden_size", 1, max_width);
  c.num_hidden_layers = json.integer("num_hidden_layers", 1, max_layers);
  c.vocab_size = json.integer("vocab_size", 1, max_vocab);
  c.intermediate_size = json.integer("intermediate_size", 1, max_width);
  c.num_attention_heads = json.integer("num_attention_heads", 1, max_width);
  c.max_position_embeddings =
      json.integer_or("max_position_embeddings", family.max_position_embeddings, 1, max_context);
  c.rms_norm_eps = json.positive_or("rms_norm_eps", 1e-6f);
  c.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);
  c.torch_dtype = json.string_or("dtype", json.string_or("torch_dtype", ""));

  // No released model of these families has such biases, and leaving one out would be a silent error.
  if (json.boolean_or("mlp_bias", false)) json.reject("mlp_bias", "is true, which is not supported");
  const std::string activation = json.string_or("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    json.reject("hidden_act", fmt::format("\"{}\" is not supported (silu is)", activation));
  }
}

void read_latent_attention(ModelConfig& c, const JsonFields& json) {
  // null, and only null, says that queries are projected directly.
  c.q_lora_rank = json.is_null("q_lora_rank") ? 0 : json.integer_or("q_lora_rank", 1536, 1, max_width);
  c.kv_lora_rank = json.integer("kv_lora_rank", 1, max_width);
  c.qk_nope_head_dim = json.integer("qk_nope_head_dim", 1, max_width);
  c.qk_rope_head_dim = json.integer("qk_rope_head_dim", 2, max_width);
  c.v_head_dim = json.integer("v_head_dim", 1, max_width);
  c.num_key_value_heads = json.integer_or("num_key_value_heads", c.num_attention_heads, 1, max_width);
  // transformers always rotates neighbouring pairs in V2; V3 has the switch.
  c.rope_interleave = c.architecture == Architecture::deepseek_v2 || json.boolean_or("rope_interleave", true);
  if (c.qk_rope_head_dim % 2)
    json.reject("qk_rope_head_dim", fmt::format("is {}, and must be even", c.qk_rope_head_dim));
  c.attention_bias = c.attention_output_bias = json.boolean_or("attention_bias", false);
}

bool is_qwen(const ModelConfig& c) {
  return c.architecture == Architecture::qwen2 || c.architecture == Architecture::qwen3;
}

void read_grouped_attention(ModelConfig& c, const JsonFields& json) {
  const int absent =
      is_qwen(c) && !json.is_null("num_key_value_heads") ? std::min(32, c.num_attention_heads) : c.num_attention_heads;
  c.num_key_value_heads = json.integer_or("num_key_value_heads", absent, 1, max_width);
  if (c.num_attention_heads % c.num_key_value_heads) {
    json.reject("num_key_value_heads", fmt::format("is {}, which does not divide num_attention_heads {}",
                                                   c.num_key_value_heads, c.num_attention_heads));
  }
  c.qk_norm = c.architecture == Architecture::qwen3;
  const bool divided = c.architecture != Architecture::qwen3;
  if (divided && !json.has("head_dim") && c.hidden_size % c.num_attention_heads) {
    json.reject("hidden_size", fmt::format("is {}, which num_attention_heads {} does not divide", c.hidden_size,
                                           c.num_attention_heads));
  }
  c.head_dim = json.integer_or("head_dim", divided ? c.hidden_size / c.num_attention_heads : 128, 2, max_width);
  if (c.head_dim % 2) json.reject("head_dim", fmt::format("is {}, and must be even", c.head_dim));
  c.rope_interleave = false;
  if (c.architecture == Architecture::qwen2) {
    c.attention_bias = true;
  } else {
    c.attention_bias = c.attention_output_bias = json.boolean_or("attention_bias", false);
  }
}

/// Qwen can restrict its upper layers to a window. R1's distilled models carry the fields but leave it off.
void refuse_sliding_window(const ModelConfig& c, const JsonFields& json) {
  bool slides = json.boolean_or("use_sliding_window", false) && json.has("sliding_window") &&
                json.integer_or("max_window_layers", 28, 0, max_context) < c.num_hidden_layers;
  if (const auto* types = json.find("layer_types")) {
    slides = false;
    for (const auto& type : *types) slides |= !type.is_string() || type.get<std::string>() != "full_attention";
  }
  if (slides) json.reject("use_sliding_window", "is on for some layers; sliding-window attention is not supported");
}

void read_routing(ModelConfig& c, const JsonFields& json) {
  const bool v3 = c.architecture == Architecture::deepseek_v3;
  const auto only = [&](const char* key, const std::string& value, std::initializer_list<const char*> known) {
    if (std::find(known.begin(), known.end(), value) == known.end()) {
      json.reject(key, fmt::format("\"{}\" is not supported for {} ({})", value, c.model_type, fmt::join(known, ", ")));
    }
  };
  c.scoring_func = json.string_or("scoring_func", v3 ? "sigmoid" : "softmax");
  c.topk_method = json.string_or("topk_method", v3 ? "noaux_tc" : "greedy");
  if (v3) {
    only("scoring_func", c.scoring_func, {"sigmoid"});
    only("topk_method", c.topk_method, {"noaux_tc"});
  } else {
    only("scoring_func", c.scoring_func, {"softmax"});
    only("topk_method", c.topk_method, {"greedy", "group_limited_greedy"});
  }

  c.norm_topk_prob = json.boolean_or("norm_topk_prob", v3);
  if (!v3 && c.norm_topk_prob) {
    // DeepSeek's own code then divides by the sum and leaves out routed_scaling_factor; transformers ignores the field.
    json.reject("norm_topk_prob", "is true, which means different things to different programs for deepseek_v2");
  }
  c.routed_scaling_factor = json.positive_or("routed_scaling_factor", v3 ? 2.5f : 1.0f);

  c.n_group = json.is_null("n_group") ? 1 : json.integer_or("n_group", v3 ? 8 : 1, 1, max_experts);
  c.topk_group = json.is_null("topk_group") ? c.n_group : json.integer_or("topk_group", v3 ? 4 : 1, 1, max_experts);
  // Greedy selection looks at no groups, whatever the file says of them; one group of all experts is the same thing.
  if (c.topk_method == "greedy") c.n_group = c.topk_group = 1;
  if (c.n_routed_experts % c.n_group) {
    json.reject("n_group",
                fmt::format("is {}, which does not divide n_routed_experts {}", c.n_group, c.n_routed_experts));
  }
  if (c.topk_group > c.n_group) {
    json.reject("topk_group", fmt::format("is {}, more than n_group {}", c.topk_group, c.n_group));
  }
  const int experts_per_group = c.n_routed_experts / c.n_group;
  // V3 scores a group by the sum of its two best experts (arXiv 2412.19437, section 2.1.2).
  if (v3 && experts_per_group < 2) json.reject("n_group", "leaves fewer than two experts in a group");
  if (c.num_experts_per_tok > c.topk_group * experts_per_group) {
    json.reject("num_experts_per_tok",
                fmt::format("is {}, more than the {} experts that {} groups hold", c.num_experts_per_tok,
                            c.topk_group * experts_per_group, c.topk_group));
  }
}

void read_experts(ModelConfig& c, const JsonFields& json) {
  const bool v3 = c.architecture == Architecture::deepseek_v3;
  if (v3) c.num_nextn_predict_layers = json.integer_or("num_nextn_predict_layers", 1, 0, 64);
  if (json.is_null("n_routed_experts")) return;  // every layer is dense
  c.n_routed_experts =
      json.integer("n_routed_experts", 1, std::min(max_experts, max_experts_of_all_layers / c.num_hidden_layers));
  c.n_shared_experts = json.is_null("n_shared_experts") ? 0 : json.integer_or("n_shared_experts", v3 ? 1 : 2, 0, 64);
  c.num_experts_per_tok = json.integer("num_experts_per_tok", 1, c.n_routed_experts);
  c.moe_intermediate_size = json.integer("moe_intermediate_size", 1, max_width);
  c.first_k_dense_replace = json.integer_or("first_k_dense_replace", v3 ? 3 : 0, 0, max_layers);
  c.moe_layer_freq = json.integer_or("moe_layer_freq", 1, 1, max_layers);
  read_routing(c, json);
}

float rope_theta(const JsonFields& json, float fallback) {
  const float theta = json.positive_or("rope_theta", fallback);
  if (theta <= 1) json.reject("rope_theta", fmt::format("is {}, and must be above 1", theta));
  return theta;
}

/// transformers 5 writes `rope_parameters` with `rope_theta` inside; before, there were `rope_scaling` (absent or null
/// for plain rotation) and a `rope_theta` beside it. Where a file has both, transformers lets `rope_scaling` win.
void read_rope(ModelConfig& c, const JsonFields& json) {
  c.rope_theta = rope_theta(json, 10000);
  const auto whole = [&](const JsonFields& fields) {
    const auto part = fields.number("partial_rotary_factor");
    if (part && *part != 1) fields.reject("partial_rotary_factor", fmt::format("is {}; only 1 is supported", *part));
  };
  whole(json);
  auto rope = json.object("rope_scaling");
  if (!rope) rope = json.object("rope_parameters");
  if (!rope) return;

  whole(*rope);
  c.rope_theta = rope_theta(*rope, c.rope_theta);
  RopeScaling& scaling = c.rope_scaling;
  const std::string type = rope->string_or("rope_type", rope->string_or("type", "default"));
  if (type == "default") {
    for (const char* layers : {"full_attention", "sliding_attention"}) {
      if (rope->has(layers)) rope->reject(layers, "sets rotation for some layers only, which is not supported");
    }
    return;
  }
  if (type == "linear") {
    scaling.type = RopeScaling::Type::linear;
  } else if (type == "llama3") {
    scaling.type = RopeScaling::Type::llama3;
  } else if (type == "yarn") {
    scaling.type = RopeScaling::Type::yarn;
  } else {
    rope->reject("rope_type", fmt::format("\"{}\" is not supported (default, linear, llama3 and yarn are)", type));
  }

  // A value beside the settings outranks the one inside, which outranks the context length: transformers' order.
  scaling.original_max_position_embeddings = json.integer_or(
      "original_max_position_embeddings",
      rope->integer_or("original_max_position_embeddings", c.max_position_embeddings, 1, max_context), 1, max_context);
  if (scaling.type == RopeScaling::Type::yarn) {
    scaling.factor = rope->positive_or("factor", static_cast<float>(c.max_position_embeddings) /
                                                     static_cast<float>(scaling.original_max_position_embeddings));
    // Python's `or`: a zero stands for the default, as absence does.
    const auto or_default = [&](const char* key, float standard) {
      const float value = rope->number(key).value_or(0);
      return value == 0 ? standard : value;
    };
    scaling.beta_fast = or_default("beta_fast", 32);
    scaling.beta_slow = or_default("beta_slow", 1);
    if (!(scaling.beta_slow > 0 && scaling.beta_fast >= scaling.beta_slow)) {
      rope->reject("beta_fast", fmt::format("{} must be at least beta_slow {}, and both above zero", scaling.beta_fast,
                                            scaling.beta_slow));
    }
    scaling.attention_factor = rope->number("attention_factor");
    // The name that vLLM and SGLang read, with a meaning of its own; DeepSeek-R1-0528-Qwen3-8B's takes the computed
    // magnitude back to 1. transformers does not know it, and computes that model with another magnitude.
    scaling.attn_factor = rope->positive_or("attn_factor", 1);
    scaling.truncate = rope->boolean_or("truncate", true);
  } else {
    if (!rope->has("factor")) rope->reject("factor", "is missing");
    scaling.factor = rope->positive_or("factor", 1);
  }
  scaling.mscale = rope->number("mscale");
  scaling.mscale_all_dim = rope->number("mscale_all_dim");
  if (scaling.type == RopeScaling::Type::llama3) {
    scaling.low_freq_factor = rope->positive_or("low_freq_factor", 1);
    scaling.high_freq_factor = rope->positive_or("high_freq_factor", 4);
    if (scaling.high_freq_factor <= scaling.low_freq_factor) {
      rope->reject("high_freq_factor", fmt::format("is {}, and must be above low_freq_factor {}",
                                                   scaling.high_freq_factor, scaling.low_freq_factor));
    }
  }
}

void read_weight_blocks(WeightQuantization& q, const JsonFields& fields) {
  const auto block = fields.integers("weight_block_size");
  if (block.size() != 2 || block[0] < 1 || block[1] < 1 || block[0] > max_width || block[1] > max_width) {
    fields.reject("weight_block_size", "must be two positive numbers, rows and columns");
  }
  q.block_rows = static_cast<int>(block[0]);
  q.block_cols = static_cast<int>(block[1]);
}

/// DeepSeek's FP8: E4M3 weights with an FP32 factor for each block, activations quantized as they come.
void read_fp8(WeightQuantization& q, const JsonFields& fields) {
  const std::string format = fields.string_or("fmt", "e4m3");
  if (format != "e4m3") fields.reject("fmt", fmt::format("\"{}\" is not supported (e4m3 is)", format));
  read_weight_blocks(q, fields);
}

/// Codes that fill words of 32 bits, in groups along the inputs; -1 is one group of all.
void read_packed(WeightQuantization& q, const JsonFields& fields, const char* bits_key) {
  q.bits = fields.integer(bits_key, 1, 8);
  if (q.bits != 2 && q.bits != 4 && q.bits != 8)
    fields.reject(bits_key, fmt::format("is {}; 2, 4 and 8 are supported", q.bits));
  q.group_size = std::max(0, fields.integer_or("group_size", -1, -1, max_width));
}

void read_awq(WeightQuantization& q, const JsonFields& fields) {
  read_packed(q, fields, fields.has("w_bit") ? "w_bit" : "bits");
  if (q.bits != 4) fields.reject("bits", fmt::format("is {}; only 4 is supported", q.bits));
  if (fields.has("q_group_size")) q.group_size = std::max(0, fields.integer("q_group_size", -1, max_width));
  const std::string version = fields.string_or("version", "gemm");
  if (version != "gemm" && version != "GEMM")
    fields.reject("version", fmt::format("\"{}\" is not supported (gemm is)", version));
}

void read_gptq(WeightQuantization& q, const JsonFields& fields) {
  read_packed(q, fields, "bits");
  const std::string format = fields.string_or("checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2") {
    fields.reject("checkpoint_format", fmt::format("\"{}\" is not supported (gptq and gptq_v2 are)", format));
  }
  q.zero_offset = format == "gptq" ? 1 : 0;
  q.act_order = fields.boolean_or("desc_act", false);
}

/// Its "pack-quantized" INT4 and "int-quantized" INT8 weights, all layers alike.
void read_compressed_tensors(WeightQuantization& q, const JsonFields& fields) {
  const std::string format = fields.string_or("format", "");
  if (format != "pack-quantized" && format != "int-quantized") {
    fields.reject("format", fmt::format("\"{}\" is not supported (pack-quantized and int-quantized are)", format));
  }
  const auto groups = fields.object("config_groups");
  const nlohmann::json* all = fields.find("config_groups");
  if (!groups || all->size() != 1) fields.reject("config_groups", "must be one group; others are not supported");
  const auto group = groups->object(all->begin().key().c_str());
  const auto weights = group ? group->object("weights") : std::nullopt;
  if (!weights) groups->reject(all->begin().key(), "says nothing of weights");
  if (weights->string_or("type", "int") != "int") weights->reject("type", "must be int");
  read_packed(q, *weights, "num_bits");
  if (format == "int-quantized") {
    if (q.bits != 8) weights->reject("num_bits", fmt::format("is {}, and must be 8 for int-quantized", q.bits));
    q.method = "int8";
  }
}

/// How the linear weights are stored. Activations are quantized, where at all, as the kernels choose, so what files say
/// of them only matters where it names a fixed scale.
void read_quantization(ModelConfig& c, const JsonFields& json) {
  const auto fields = json.object("quantization_config");
  if (!fields) return;
  WeightQuantization q;
  q.method = fields->string_or("quant_method", "");
  const std::string activations = fields->string_or("activation_scheme", "dynamic");
  if (activations != "dynamic") {
    fields->reject("activation_scheme", fmt::format("\"{}\" is not supported (dynamic is)", activations));
  }
  if (q.method == "fp8") {
    read_fp8(q, *fields);
  } else if (q.method == "blockwise_int8") {
    q.method = "int8";
    read_weight_blocks(q, *fields);
  } else if (q.method == "w8a8_int8") {
    q.method = "int8";
  } else if (q.method == "awq") {
    read_awq(q, *fields);
  } else if (q.method == "gptq") {
    read_gptq(q, *fields);
  } else if (q.method == "compressed-tensors") {
    read_compressed_tensors(q, *fields);
  } else {
    fields->reject("quant_method", fmt::format("\"{}\" is not supported (fp8, blockwise_int8, w8a8_int8, awq, gptq and "
                                               "compressed-tensors are)",
                                               q.method));
  }
  c.quantization = q;
}

/// Ends of a text: what both files name (Qwen2's instruct models list more of them in generation_config.json). The
/// class defaults count only where neither file says anything.
void read_token_ids(ModelConfig& c, const JsonFields& json, const std::optional<JsonFields>& generation,
                    const FamilyDefaults& family) {
  const auto add = [&](const JsonFields& fields) {
    for (const auto id : fields.integers("eos_token_id")) {
      // An id outside the vocabulary can never be produced; some files write -1 for none.
      if (id < 0 || id >= c.vocab_size) continue;
      const int token = static_cast<int>(id);
      if (std::find(c.eos_token_ids.begin(), c.eos_token_ids.end(), token) == c.eos_token_ids.end()) {
        c.eos_token_ids.push_back(token);
      }
    }
    if (const auto bos = fields.integers("bos_token_id"); !c.bos_token_id && bos.size() == 1 && bos[0] >= 0) {
      if (bos[0] < c.vocab_size) c.bos_token_id = static_cast<int>(bos[0]);
    }
  };
  add(json);
  if (generation) add(*generation);
  const auto silent = [&](const char* key) {
    return !json.has(key) && !json.is_null(key) && !(generation && generation->has(key));
  };
  if (silent("eos_token_id") && family.eos_token_id) c.eos_token_ids = {*family.eos_token_id};
  if (silent("bos_token_id")) c.bos_token_id = family.bos_token_id;
}

}  // namespace

ModelConfig ModelConfig::from_json(const nlohmann::json& document, const std::string& place,
                                   const std::optional<JsonFields>& generation) {
  const JsonFields json(document, place);
  ModelConfig c;
  const FamilyDefaults family = family_of(json);
  c.architecture = family.architecture;
  c.model_type = json.string_or("model_type", "");
  read_dimensions(c, json, family);
  if (c.architecture == Architecture::deepseek_v3 || c.architecture == Architecture::deepseek_v2) {
    read_latent_attention(c, json);
    read_experts(c, json);
  } else {
    read_grouped_attention(c, json);
  }
  if (is_qwen(c)) refuse_sliding_window(c, json);
  read_rope(c, json);
  read_quantization(c, json);
  read_token_ids(c, json, generation, family);
  return c;
}

ModelConfig ModelConfig::from_file(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be looked at is reported when it is opened
  const auto file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  const auto document = read_json_file(file);
  const auto beside = file.parent_path() / "generation_config.json";
  nlohmann::json generation;
  std::optional<JsonFields> generation_fields;
  if (std::filesystem::exists(beside, ignored)) {
    generation = read_json_file(beside);
    generation_fields.emplace(generation, beside.string());
  }
  return from_json(document, file.string(), generation_fields);
}

}  // namespace shoal
