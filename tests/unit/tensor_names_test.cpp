#include "planner/tensor_names.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/unit/config_fixtures.h"

namespace shoal {
namespace {

using Shape = std::vector<std::int64_t>;

ModelConfig published(const std::string& name) { return read_config(published_config(name)); }

std::map<std::string, ExpectedTensor> by_name(const ModelConfig& config) {
  std::map<std::string, ExpectedTensor> tensors;
  for (auto& tensor : expected_tensors(config)) {
    EXPECT_TRUE(tensors.emplace(tensor.name, tensor).second) << tensor.name << " comes twice";
  }
  return tensors;
}

TEST(TensorNames, R1HasTheShapesOfItsCheckpoint) {
  const auto t = by_name(published("deepseek-r1"));
  EXPECT_EQ(t.at("model.embed_tokens.weight").shape, (Shape{129280, 7168}));
  EXPECT_EQ(t.at("model.layers.0.mlp.gate_proj.weight").shape, (Shape{18432, 7168}));
  EXPECT_EQ(t.at("model.layers.0.mlp.down_proj.weight_scale_inv").shape, (Shape{56, 144}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.q_a_proj.weight").shape, (Shape{1536, 7168}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.q_a_layernorm.weight").shape, (Shape{1536}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.q_b_proj.weight").shape, (Shape{24576, 1536}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.kv_a_proj_with_mqa.weight").shape, (Shape{576, 7168}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.kv_a_proj_with_mqa.weight_scale_inv").shape, (Shape{5, 56}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.kv_a_layernorm.weight").shape, (Shape{512}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.kv_b_proj.weight").shape, (Shape{32768, 512}));
  EXPECT_EQ(t.at("model.layers.3.self_attn.o_proj.weight").shape, (Shape{7168, 16384}));
  EXPECT_EQ(t.at("model.layers.3.mlp.gate.weight").shape, (Shape{256, 7168}));
  EXPECT_EQ(t.at("model.layers.3.mlp.gate.e_score_correction_bias").shape, (Shape{256}));
  EXPECT_EQ(t.at("model.layers.60.mlp.experts.255.up_proj.weight").shape, (Shape{2048, 7168}));
  EXPECT_EQ(t.at("model.layers.60.mlp.shared_experts.down_proj.weight").shape, (Shape{7168, 2048}));
  EXPECT_EQ(t.at("model.layers.61.eh_proj.weight").shape, (Shape{7168, 14336}));
  EXPECT_EQ(t.at("model.layers.61.shared_head.norm.weight").shape, (Shape{7168}));
  EXPECT_EQ(t.at("model.layers.61.mlp.experts.0.gate_proj.weight").need, Need::with_mtp_layer);
  EXPECT_EQ(t.at("model.layers.61.embed_tokens.weight").need, Need::never);
  EXPECT_EQ(t.at("lm_head.weight").need, Need::always);
  EXPECT_FALSE(t.contains("model.layers.2.mlp.gate.weight"));
  EXPECT_FALSE(t.contains("model.layers.3.self_attn.q_proj.weight"));
  EXPECT_FALSE(t.contains("lm_head.weight_scale_inv"));
  EXPECT_FALSE(t.contains("model.layers.62.enorm.weight"));
}

TEST(TensorNames, CountsTheParametersModelsAreNamedAfter) {
  const auto count = [](const std::string& name) {
    const ModelConfig config = published(name);
    return count_parameters(config, expected_tensors(config));
  };
  const ParameterCounts r1 = count("deepseek-r1");
  EXPECT_EQ(r1.total, 671'026'419'200) << "what its authors state: 671B";
  EXPECT_NEAR(static_cast<double>(r1.active), 37e9, 0.5e9);
  EXPECT_NEAR(static_cast<double>(r1.total + r1[Part::mtp]), 684.5e9, 0.05e9) << "and 685B with MTP";
  EXPECT_NEAR(static_cast<double>(count("deepseek-v2").total), 236e9, 0.5e9);
  EXPECT_NEAR(static_cast<double>(count("deepseek-v2").active), 21e9, 0.5e9);
  EXPECT_NEAR(static_cast<double>(count("deepseek-v2-lite").total), 15.7e9, 0.05e9);
  EXPECT_NEAR(static_cast<double>(count("deepseek-llm-67b").total), 67e9, 0.5e9);
  EXPECT_EQ(count("r1-distill-qwen-7b").total, 7'615'616'512);
  EXPECT_EQ(count("r1-distill-llama-70b").total, 70'553'706'496);
}

TEST(TensorNames, BiasesNormsAndTiesFollowTheFamily) {
  const auto qwen = by_name(published("r1-distill-qwen-7b"));
  EXPECT_EQ(qwen.at("model.layers.0.self_attn.k_proj.bias").shape, (Shape{512}));
  EXPECT_FALSE(qwen.contains("model.layers.0.self_attn.o_proj.bias"));
  const auto qwen3 = by_name(published("r1-0528-qwen3-8b"));
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.q_norm.weight").shape, (Shape{128}));
  EXPECT_EQ(qwen3.at("model.layers.35.self_attn.k_norm.weight").shape, (Shape{128}));
  EXPECT_FALSE(qwen3.contains("model.layers.0.self_attn.q_proj.bias"));
  const auto llama = by_name(published("llama with wide heads and biases"));
  EXPECT_EQ(llama.at("model.layers.0.self_attn.q_proj.weight").shape, (Shape{256, 160}));
  EXPECT_EQ(llama.at("model.layers.0.self_attn.o_proj.bias").shape, (Shape{160}));
  EXPECT_EQ(llama.at("lm_head.weight").need, Need::never);
  EXPECT_EQ(by_name(published("deepseek-v2-lite")).at("model.layers.0.self_attn.q_proj.weight").shape,
            (Shape{3072, 2048}));
}

}  // namespace
}  // namespace shoal
