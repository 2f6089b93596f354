#include "runtime/gguf_config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "planner/tensor_names.h"

namespace shoal {
namespace {

using nlohmann::json;

Gguf model_of(const json& metadata, std::int64_t vocab) {
  Gguf gguf{{"model.gguf"}, metadata, {}};
  TensorInfo embedding;
  embedding.name = "token_embd.weight";
  embedding.shape = {vocab, 7168};
  TensorInfo head = embedding;
  head.name = "output.weight";
  gguf.tensors = {embedding, head};
  return gguf;
}

/// What the published GGUF files of R1 say, those from before MLA and those after.
json r1(bool mla) {
  json m = {{"general.architecture", "deepseek2"},
            {"deepseek2.block_count", 61},
            {"deepseek2.context_length", 163840},
            {"deepseek2.embedding_length", 7168},
            {"deepseek2.feed_forward_length", 18432},
            {"deepseek2.attention.head_count", 128},
            {"deepseek2.attention.head_count_kv", mla ? 1 : 128},
            {"deepseek2.rope.freq_base", 10000.0},
            {"deepseek2.attention.layer_norm_rms_epsilon", 1e-6},
            {"deepseek2.expert_used_count", 8},
            {"deepseek2.leading_dense_block_count", 3},
            {"deepseek2.vocab_size", 129280},
            {"deepseek2.attention.q_lora_rank", 1536},
            {"deepseek2.attention.kv_lora_rank", 512},
            {"deepseek2.attention.key_length", mla ? 576 : 192},
            {"deepseek2.attention.value_length", mla ? 512 : 128},
            {"deepseek2.expert_feed_forward_length", 2048},
            {"deepseek2.expert_count", 256},
            {"deepseek2.expert_shared_count", 1},
            {"deepseek2.expert_weights_scale", 2.5},
            {"deepseek2.expert_weights_norm", true},
            {"deepseek2.expert_gating_func", 2},
            {"deepseek2.rope.dimension_count", 64},
            {"deepseek2.rope.scaling.type", "yarn"},
            {"deepseek2.rope.scaling.factor", 40.0},
            {"deepseek2.rope.scaling.original_context_length", 4096},
            {"deepseek2.rope.scaling.yarn_log_multiplier", 0.1},
            {"tokenizer.ggml.eos_token_id", 1},
            {"tokenizer.ggml.bos_token_id", 0}};
  if (mla) {
    m["deepseek2.attention.key_length_mla"] = 192;
    m["deepseek2.attention.value_length_mla"] = 128;
  }
  return m;
}

TEST(GgufConfig, KnowsR1InBothLayouts) {
  for (const bool mla : {false, true}) {
    const ModelConfig c = gguf_model_config(model_of(r1(mla), 129280));
    EXPECT_EQ(c.architecture, Architecture::deepseek_v3);
    EXPECT_EQ(c.qk_nope_head_dim, 128);
    EXPECT_EQ(c.qk_rope_head_dim, 64);
    EXPECT_EQ(c.v_head_dim, 128);
    EXPECT_EQ(c.n_group, 8) << "which files from before these keys leave out";
    EXPECT_EQ(c.topk_group, 4);
    EXPECT_EQ(c.topk_method, "noaux_tc");
    EXPECT_EQ(c.routed_scaling_factor, 2.5f);
    EXPECT_EQ(c.num_nextn_predict_layers, 0);
    EXPECT_EQ(c.eos_token_ids, std::vector<int>{1});
    EXPECT_EQ(rope_frequencies(c).magnitude, 1.0f);
    // 1 / sqrt(192) * (0.1 ln 40 + 1)^2
    EXPECT_NEAR(attention_scale(c), 0.1352337788f, 1e-7);
    EXPECT_EQ(count_parameters(c, expected_tensors(c)).total, 671'026'419'200);
  }
}

/// What a file of DeepSeek-R1-0528-Qwen3-8B says of its YaRN, and what llama.cpp makes of further keys.
TEST(GgufConfig, TakesTheMagnitudeOfYarnAsLlamaCppDoes) {
  const auto magnitude = [](const json& more) {
    json m = {{"general.architecture", "qwen3"},
              {"qwen3.block_count", 36},
              {"qwen3.context_length", 131072},
              {"qwen3.embedding_length", 4096},
              {"qwen3.feed_forward_length", 12288},
              {"qwen3.attention.head_count", 32},
              {"qwen3.attention.head_count_kv", 8},
              {"qwen3.attention.key_length", 128},
              {"qwen3.attention.value_length", 128},
              {"qwen3.rope.freq_base", 1e6},
              {"qwen3.rope.scaling.type", "yarn"},
              {"qwen3.rope.scaling.factor", 4.0},
              {"qwen3.rope.scaling.original_context_length", 32768}};
    m.update(more);
    const ModelConfig c = gguf_model_config(model_of(m, 151936));
    EXPECT_TRUE(c.qk_norm);
    EXPECT_FALSE(c.attention_bias);
    return rope_frequencies(c).magnitude;
  };
  EXPECT_FLOAT_EQ(magnitude(json::object()), 1.1386294f);  // 0.1 ln 4 + 1
  EXPECT_FLOAT_EQ(magnitude({{"qwen3.rope.scaling.attn_factor", 0.8782488562869419}}), 1);
  EXPECT_FLOAT_EQ(magnitude({{"qwen3.rope.scaling.yarn_attn_factor", 0.8782488562869419}}), 1.1386294f);
  EXPECT_FLOAT_EQ(magnitude({{"qwen3.rope.scaling.yarn_ext_factor", -1.0}}), 1.1386294f);
  EXPECT_THROW(magnitude({{"qwen3.rope.scaling.yarn_ext_factor", 0.5}}), Error);
}

TEST(GgufConfig, NamesWhatIsWrong) {
  const auto refusal = [](const std::string& key, const json& value) -> std::string {
    json metadata = r1(true);
    metadata[key] = value;
    if (value.is_null()) metadata.erase(key);
    try {
      gguf_model_config(model_of(metadata, 129280));
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  const auto expect = [&](const std::string& key, const json& value, const std::string& why) {
    const std::string message = refusal(key, value);
    EXPECT_NE(message.find("model.gguf"), message.npos) << message;
    EXPECT_NE(message.find(why), message.npos) << message;
  };
  expect("general.architecture", "mamba", "general.architecture \"mamba\" is not supported");
  expect("general.architecture", "qwen3moe", "general.architecture \"qwen3moe\" is not supported");
  expect("general.architecture", nullptr, "general.architecture is missing");
  expect("deepseek2.block_count", nullptr, "deepseek2.block_count is missing");
  expect("deepseek2.block_count", -1, "deepseek2.block_count is -1");
  expect("deepseek2.embedding_length", "wide", "must be an integer");
  expect("deepseek2.expert_gating_func", 3, "deepseek2.expert_gating_func is 3");
  expect("deepseek2.rope.scaling.type", "longrope", "\"longrope\" is not supported");
  expect("deepseek2.attention.key_length_mla", 64, "not above rope.dimension_count 64");
  expect("deepseek2.expert_used_count", 300, "num_experts_per_tok");
}

}  // namespace
}  // namespace shoal
