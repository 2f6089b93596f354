#include "planner/model_config.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/unit/config_fixtures.h"

namespace shoal {
namespace {

using nlohmann::json;

/// What `from_file` says of a configuration with changes; "" where it takes it.
std::string refusal(json config, const json& changes) {
  for (const auto& [key, value] : changes.items()) config[key] = value;
  return error_of([&] { read_config(config); });
}

std::map<std::string, int> integers_of(const ModelConfig& c) {
  return {{"hidden_size", c.hidden_size},
          {"num_hidden_layers", c.num_hidden_layers},
          {"vocab_size", c.vocab_size},
          {"intermediate_size", c.intermediate_size},
          {"num_attention_heads", c.num_attention_heads},
          {"num_key_value_heads", c.num_key_value_heads},
          {"max_position_embeddings", c.max_position_embeddings},
          {"head_dim", c.head_dim},
          {"q_lora_rank", c.q_lora_rank},
          {"kv_lora_rank", c.kv_lora_rank},
          {"qk_nope_head_dim", c.qk_nope_head_dim},
          {"qk_rope_head_dim", c.qk_rope_head_dim},
          {"v_head_dim", c.v_head_dim},
          {"n_routed_experts", c.n_routed_experts},
          {"n_shared_experts", c.n_shared_experts},
          {"num_experts_per_tok", c.num_experts_per_tok},
          {"moe_intermediate_size", c.moe_intermediate_size},
          {"first_k_dense_replace", c.first_k_dense_replace},
          {"n_group", c.n_group},
          {"topk_group", c.topk_group},
          {"num_nextn_predict_layers", c.num_nextn_predict_layers}};
}

TEST(ModelConfig, ReadsWhatTransformersReadsInBothSpellings) {
  const json cases = config_fixtures();
  for (const json& c : cases) {
    for (const char* spelling : {"published", "saved"}) {
      SCOPED_TRACE(c["name"].get<std::string>() + ", " + spelling);
      const ModelConfig config = read_config(c[spelling]);
      const json& expected = c["expected"];
      const auto integers = integers_of(config);
      for (const auto& [name, value] : expected["integers"].items()) EXPECT_EQ(integers.at(name), value) << name;
      EXPECT_EQ(config.eos_token_ids, expected["eos_token_ids"].get<std::vector<int>>());
      EXPECT_EQ(config.bos_token_id, expected["bos_token_id"].get<int>());
      EXPECT_FLOAT_EQ(config.rms_norm_eps, expected["rms_norm_eps"].get<float>());
      EXPECT_FLOAT_EQ(config.routed_scaling_factor, expected["routed_scaling_factor"].get<float>());
      EXPECT_EQ(config.norm_topk_prob, expected["norm_topk_prob"].get<bool>());
      EXPECT_EQ(config.tie_word_embeddings, expected["tie_word_embeddings"].get<bool>());
    }
  }
}

TEST(ModelConfig, ReadsHowWeightsAreQuantized) {
  const auto quantization = [](const json& settings) {
    json config = published_config("deepseek-r1");
    config["quantization_config"] = settings;
    return *read_config(config).quantization;
  };
  const auto awq = quantization({{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"version", "gemm"}});
  EXPECT_EQ(awq.bits, 4);
  EXPECT_EQ(awq.group_size, 64);
  EXPECT_EQ(quantization({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", -1}}).group_size, 0);
  EXPECT_EQ(quantization({{"quant_method", "gptq"}, {"bits", 4}}).zero_offset, 1);
  EXPECT_EQ(quantization({{"quant_method", "gptq"}, {"bits", 4}, {"checkpoint_format", "gptq_v2"}}).zero_offset, 0);
  EXPECT_EQ(quantization({{"quant_method", "w8a8_int8"}}).method, "int8");
  const auto blocks = quantization({{"quant_method", "blockwise_int8"}, {"weight_block_size", {128, 64}}});
  EXPECT_EQ(blocks.method, "int8");
  EXPECT_EQ(blocks.block_cols, 64);
  const auto packed = quantization(
      {{"quant_method", "compressed-tensors"},
       {"format", "pack-quantized"},
       {"config_groups", {{"group_0", {{"weights", {{"num_bits", 4}, {"type", "int"}, {"group_size", 32}}}}}}}});
  EXPECT_EQ(packed.bits, 4);
  EXPECT_EQ(packed.group_size, 32);
}

TEST(ModelConfig, KnowsR1) {
  const ModelConfig r1 = read_config(published_config("deepseek-r1"));
  EXPECT_EQ(r1.architecture, Architecture::deepseek_v3);
  EXPECT_EQ(r1.torch_dtype, "bfloat16");
  EXPECT_EQ(r1.scoring_func, "sigmoid");
  EXPECT_EQ(r1.topk_method, "noaux_tc");
  EXPECT_EQ(r1.kv_width(), 576);
  EXPECT_TRUE(r1.rope_interleave);
  EXPECT_FALSE(r1.is_moe_layer(2));
  EXPECT_TRUE(r1.is_moe_layer(3));
  ASSERT_TRUE(r1.quantization);
  EXPECT_EQ(r1.quantization->method, "fp8");
  EXPECT_EQ(r1.quantization->block_rows, 128);
  EXPECT_EQ(r1.quantization->block_cols, 128);
}

TEST(ModelConfig, KnowsWhichBiasesAFamilyHas) {
  const ModelConfig qwen = read_config(published_config("r1-distill-qwen-7b"));
  EXPECT_TRUE(qwen.attention_bias);
  EXPECT_FALSE(qwen.attention_output_bias);
  const ModelConfig llama = read_config(published_config("llama with wide heads and biases"));
  EXPECT_TRUE(llama.attention_bias);
  EXPECT_TRUE(llama.attention_output_bias);
  const ModelConfig v1 = read_config(published_config("deepseek-llm-67b"));
  EXPECT_FALSE(v1.attention_bias);
  EXPECT_FALSE(v1.attention_output_bias);
}

TEST(ModelConfig, GreedySelectionHasOneGroup) {
  json v2 = published_config("deepseek-v2");
  v2["topk_method"] = "greedy";
  EXPECT_EQ(read_config(v2).n_group, 1);
  EXPECT_EQ(read_config(v2).topk_group, 1);
  v2["n_group"] = v2["topk_group"] = nullptr;
  v2["topk_method"] = "group_limited_greedy";
  EXPECT_EQ(read_config(v2).n_group, 1);
}

TEST(ModelConfig, AModelOfOneFileIsReadByItsPath) {
  const ScratchFolder folder;
  const auto file = folder.write("other.json", published_config("deepseek-r1").dump());
  EXPECT_EQ(ModelConfig::from_file(file).num_hidden_layers, 61);
}

TEST(ModelConfig, JoinsTheEndsOfTextOfBothFiles) {
  const json qwen = published_config("r1-distill-qwen-7b");
  EXPECT_EQ(read_config(qwen, {{"eos_token_id", {151645, 151643}}}).eos_token_ids, (std::vector<int>{151643, 151645}));
  json silent = published_config("llama that says little");
  EXPECT_EQ(read_config(silent, {{"eos_token_id", 7}}).eos_token_ids, (std::vector<int>{7}))
      << "not the class default 2";
  EXPECT_EQ(read_config(silent, {{"bos_token_id", 9}}).bos_token_id, 9);
  silent["eos_token_id"] = -1;
  EXPECT_EQ(read_config(silent).eos_token_ids, (std::vector<int>{}));
  silent["bos_token_id"] = nullptr;
  EXPECT_EQ(read_config(silent).bos_token_id, std::nullopt);
}

TEST(ModelConfig, RopeScalingOutranksRopeParameters) {
  json config = published_config("r1-distill-llama-70b");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 77}};
  EXPECT_EQ(read_config(config).rope_scaling.type, RopeScaling::Type::llama3);
  EXPECT_EQ(read_config(config).rope_theta, 500000);
  config["rope_scaling"] = nullptr;
  EXPECT_EQ(read_config(config).rope_scaling.type, RopeScaling::Type::none);
  EXPECT_EQ(read_config(config).rope_theta, 77);
}

TEST(ModelConfig, NamesFileAndFieldOfWhatItRefuses) {
  const json r1 = published_config("deepseek-r1"), v2 = published_config("deepseek-v2"),
             qwen = published_config("r1-distill-qwen-7b"), llama = published_config("r1-distill-llama-70b");
  struct Refused {
    json config;
    json changes;
    const char* names;
  };
  const Refused cases[] = {
      {r1, {{"model_type", "mixtral"}}, "model_type \"mixtral\" is not supported"},
      {qwen, {{"model_type", "qwen3_moe"}}, "model_type \"qwen3_moe\" is not supported"},
      {r1, {{"model_type", nullptr}}, "model_type is missing"},
      {r1, {{"model_type", 3}}, "model_type must be a string"},
      {r1, {{"hidden_size", nullptr}}, "hidden_size is missing"},
      {r1, {{"hidden_size", "7168"}}, "hidden_size must be an integer"},
      {r1, {{"hidden_size", 7168.0}}, "hidden_size must be an integer"},
      {r1, {{"hidden_size", -1}}, "hidden_size is -1"},
      {r1, {{"hidden_size", 18446744073709551615ull}}, "hidden_size must be an integer"},
      {r1, {{"num_hidden_layers", 4000000000}}, "num_hidden_layers is 4000000000"},
      {r1, {{"kv_lora_rank", nullptr}}, "kv_lora_rank is missing"},
      {r1, {{"q_lora_rank", 0}}, "q_lora_rank is 0"},
      {r1, {{"qk_rope_head_dim", 63}}, "qk_rope_head_dim is 63, and must be even"},
      {r1, {{"hidden_act", "gelu"}}, "hidden_act \"gelu\""},
      {r1, {{"mlp_bias", true}}, "mlp_bias"},
      {r1, {{"rms_norm_eps", 0}}, "rms_norm_eps is 0"},
      {r1, {{"rms_norm_eps", 1e300}}, "rms_norm_eps is 1e+300"},
      {r1, {{"rope_theta", 1}}, "rope_theta is 1"},
      {r1, {{"scoring_func", "softmax"}}, "scoring_func \"softmax\""},
      {r1, {{"topk_method", "greedy"}}, "topk_method \"greedy\""},
      {v2, {{"topk_method", "noaux_tc"}}, "topk_method \"noaux_tc\""},
      {v2, {{"norm_topk_prob", true}}, "norm_topk_prob"},
      {r1, {{"n_group", 7}}, "n_group is 7, which does not divide n_routed_experts 256"},
      {r1, {{"n_group", 256}}, "n_group leaves fewer than two"},
      {r1, {{"topk_group", 9}}, "topk_group is 9, more than n_group 8"},
      {r1, {{"num_experts_per_tok", 257}}, "num_experts_per_tok is 257"},
      {r1, {{"num_experts_per_tok", 129}}, "num_experts_per_tok is 129, more than the 128"},
      {r1, {{"quantization_config", {{"quant_method", "bitsandbytes"}}}}, "quant_method \"bitsandbytes\""},
      {r1, {{"quantization_config", {{"quant_method", "fp8"}}}}, "weight_block_size"},
      {r1, {{"quantization_config", {{"quant_method", "awq"}, {"bits", 8}}}}, "only 4"},
      {r1, {{"quantization_config", {{"quant_method", "gptq"}, {"bits", 3}}}}, "bits is 3"},
      {r1, {{"quantization_config", {{"quant_method", "compressed-tensors"}, {"format", "marlin"}}}}, "marlin"},
      {r1, {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 0}}}}}, "weight_block_size"},
      {r1, {{"quantization_config", 5}}, "quantization_config: must be a JSON object"},
      {r1, {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2}}}}, "rope_type \"dynamic\""},
      {r1, {{"rope_scaling", {{"type", "longrope"}}}}, "rope_type \"longrope\""},
      {r1, {{"rope_scaling", {{"type", "linear"}}}}, "rope_scaling: factor is missing"},
      {r1, {{"rope_scaling", {{"type", "yarn"}, {"factor", -4}}}}, "rope_scaling: factor is -4"},
      {r1, {{"rope_scaling", {{"type", "yarn"}, {"beta_fast", 1}, {"beta_slow", 2}}}}, "beta_fast"},
      {llama, {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is 0.5"},
      {llama,
       {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"high_freq_factor", 1}}}},
       "high_freq_factor"},
      {llama, {{"num_key_value_heads", 7}}, "num_key_value_heads is 7, which does not divide"},
      {llama, {{"head_dim", 127}}, "head_dim is 127"},
      {qwen, {{"num_attention_heads", 24}}, "hidden_size is 3584"},
      {qwen, {{"use_sliding_window", true}, {"max_window_layers", 21}}, "sliding-window"},
      {qwen, {{"layer_types", json::array({"sliding_attention"})}}, "sliding-window"},
      {qwen, {{"eos_token_id", "end"}}, "eos_token_id must be an integer"},
      {qwen, {{"tie_word_embeddings", "yes"}}, "tie_word_embeddings must be true or false"},
  };
  for (const auto& [config, changes, names] : cases) {
    EXPECT_PRED2(contains, refusal(config, changes), "config.json: ") << changes;
    EXPECT_PRED2(contains, refusal(config, changes), names) << changes;
  }
}

TEST(ModelConfig, AcceptsAWindowThatIsOff) {
  const json qwen = published_config("r1-distill-qwen-7b");
  EXPECT_EQ(refusal(qwen, {{"use_sliding_window", true}, {"max_window_layers", 28}}), "");
  EXPECT_EQ(refusal(qwen, {{"use_sliding_window", true}, {"max_window_layers", 0}, {"sliding_window", nullptr}}), "");
  EXPECT_EQ(refusal(qwen, {{"layer_types", json::array({"full_attention"})}}), "");
}

TEST(ModelConfig, RefusesFilesThatAreNoConfiguration) {
  const ScratchFolder folder;
  const auto saying = [&](std::string_view text) {
    folder.write("config.json", text);
    return error_of([&] { ModelConfig::from_file(folder.path()); });
  };
  EXPECT_PRED2(contains, error_of([&] { ModelConfig::from_file(folder.path()); }), "config.json: cannot be read");
  EXPECT_PRED2(contains, saying(""), "is not valid JSON");
  EXPECT_PRED2(contains, saying("{\"model_type\": \"llama\""), "is not valid JSON");
  EXPECT_PRED2(contains, saying("[1]"), "must be a JSON object");
  EXPECT_PRED2(contains, saying(R"({"hidden_size": 1, "hidden_size": 2})"), "\"hidden_size\" comes twice");
  EXPECT_PRED2(contains, saying(std::string(100'000, '[')), "nested deeper");
  EXPECT_PRED2(contains, saying(std::string((16 << 20) + 1, ' ')), "more than such a file may have");
}

}  // namespace
}  // namespace shoal
