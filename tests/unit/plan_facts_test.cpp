#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "base/error.h"
#include "kernels/matrix.h"
#include "planner/cards.h"
#include "planner/precision.h"
#include "tests/unit/config_fixtures.h"

namespace shoal {
namespace {

double off_by(double value, double truth) { return std::abs(value / truth - 1); }

ParameterCounts count(const ModelConfig& config) { return count_parameters(config, expected_tensors(config)); }

/// Parameters as the model pages on Hugging Face count them (safetensors), where they count no factors of quantized
/// weights; DeepSeek's own papers for those with experts (arXiv 2405.04434, 2412.19437).
TEST(PlanFacts, EveryModelCardHasThePublishedNumberOfParameters) {
  const std::map<std::string_view, double> published = {
      {"deepseek-llm-67b", 67.4e9},
      {"deepseek-v2-lite", 15.7e9},
      {"deepseek-v2", 236e9},
      {"deepseek-v3", 671e9},
      {"deepseek-r1", 671e9},
      {"deepseek-r1-zero", 671e9},
      {"deepseek-r1-distill-qwen-1.5b", 1'777'088'000},
      {"deepseek-r1-distill-qwen-7b", 7'615'616'512},
      {"deepseek-r1-distill-qwen-14b", 14'770'033'664},
      {"deepseek-r1-distill-qwen-32b", 32'763'876'352},
      {"deepseek-r1-distill-llama-8b", 8'030'261'248},
      {"deepseek-r1-distill-llama-70b", 70'553'706'496},
      {"deepseek-r1-0528-qwen3-8b", 8'190'735'360},
      {"qwen2.5-7b", 7'615'616'512},
  };
  EXPECT_EQ(model_cards().size(), published.size());
  for (const Card& card : model_cards()) {
    ASSERT_TRUE(published.contains(card.name)) << card.name;
    const double truth = published.at(card.name);
    const auto total = static_cast<double>(count(find_model(std::string(card.name))).total);
    EXPECT_LT(off_by(total, truth), truth == std::floor(truth / 1e8) * 1e8 ? 2e-3 : 1e-12) << card.name;
  }
  const std::map<std::string, double> active = {
      {"deepseek-r1", 37e9}, {"deepseek-v2", 21e9}, {"deepseek-v2-lite", 2.4e9}};
  for (const auto& [name, truth] : active)
    EXPECT_LT(off_by(static_cast<double>(count(find_model(name)).active), truth), 0.025) << name;
}

TEST(PlanFacts, CardsSayWhatTheFixturesSay) {
  const std::map<std::string, std::string> fixture_of = {{"deepseek-r1", "deepseek-r1"},
                                                         {"deepseek-v2", "deepseek-v2"},
                                                         {"deepseek-v2-lite", "deepseek-v2-lite"},
                                                         {"deepseek-llm-67b", "deepseek-llm-67b"},
                                                         {"deepseek-r1-distill-qwen-7b", "r1-distill-qwen-7b"},
                                                         {"deepseek-r1-0528-qwen3-8b", "r1-0528-qwen3-8b"},
                                                         {"deepseek-r1-distill-llama-70b", "r1-distill-llama-70b"}};
  for (const auto& [card, fixture] : fixture_of) {
    const ModelConfig a = find_model(card), b = read_config(published_config(fixture));
    EXPECT_EQ(expected_tensors(a).size(), expected_tensors(b).size()) << card;
    EXPECT_EQ(a.max_position_embeddings, b.max_position_embeddings) << card;
    EXPECT_EQ(a.rope_theta, b.rope_theta) << card;
  }
}

/// Sizes that publishers state. Ollama writes decimal GB; Unsloth's "131GB" and the others are GiB (loaders print
/// 130.60 GiB for the first, and 211.03 GiB for the last).
TEST(PlanFacts, FilesHaveThePublishedSizes) {
  const double gib = 1024.0 * 1024 * 1024;
  struct Published {
    const char *model, *precision;
    double bytes, tolerance;
  };
  const Published files[] = {
      {"deepseek-r1", "fp8", 688'586'727'753, 0.001},  // metadata.total_size of its index
      {"deepseek-r1", "Q4_K_M", 404e9, 0.02},
      {"deepseek-r1", "UD-IQ1_S", 140'231'438'464, 0.0001},
      {"deepseek-r1", "UD-IQ1_S", 131 * gib, 0.02},
      {"deepseek-r1", "UD-IQ1_M", 158 * gib, 0.02},
      {"deepseek-r1", "UD-IQ2_XXS", 183 * gib, 0.02},
      {"deepseek-r1", "UD-Q2_K_XL", 212 * gib, 0.02},
      {"deepseek-r1", "UD-Q2_K_XL", 211.03 * gib, 0.0001},
      {"deepseek-r1-distill-qwen-7b", "Q4_K_M", 4.7e9, 0.02},
      {"deepseek-r1-distill-qwen-7b", "bf16", 15.23e9, 0.001},
      {"deepseek-r1-distill-llama-70b", "Q4_K_M", 42.52e9, 0.005},
      {"deepseek-r1-distill-llama-8b", "Q4_K_M", 4.92e9, 0.005},
  };
  for (const Published& f : files) {
    const auto bytes = checkpoint_bytes(find_model(f.model), Precision::from_name(f.precision));
    EXPECT_LT(off_by(static_cast<double>(bytes), f.bytes), f.tolerance)
        << f.model << " " << f.precision << " " << bytes;
  }
}

/// What loaders print of the header: "type q4_K: 190 tensors" and so on; a layer's experts are one tensor there.
TEST(PlanFacts, DynamicMixesHaveTheTensorTypesOfTheirFiles) {
  const ModelConfig r1 = find_model("deepseek-r1");
  const auto histogram = [&](const char* mix) {
    const Precision precision = Precision::from_name(mix);
    std::map<std::string_view, int> types;
    for (const ExpectedTensor& t : expected_tensors(r1)) {
      if (t.part == Part::mtp || !t.required()) continue;
      if (t.part == Part::routed_experts && t.name.find(".experts.0.") == std::string::npos) continue;
      ++types[precision.type_of(r1, t).name];
    }
    return types;
  };
  using Types = std::map<std::string_view, int>;
  EXPECT_EQ(histogram("UD-IQ1_S"),
            (Types{{"F32", 361}, {"Q4_K", 190}, {"Q5_K", 116}, {"Q6_K", 184}, {"IQ2_XXS", 6}, {"IQ1_S", 168}}));
  EXPECT_EQ(histogram("UD-Q2_K_XL"), (Types{{"F32", 361}, {"Q4_K", 306}, {"Q6_K", 184}, {"Q2_K", 171}, {"Q3_K", 3}}));
}

TEST(PlanFacts, RowsThatBlocksDoNotDivideGetSmallerBlocks) {
  ModelConfig config = find_model("deepseek-r1-distill-qwen-1.5b");
  config.intermediate_size = 8960 + 32;
  const Precision precision = Precision::from_name("q4_k_m");
  for (const ExpectedTensor& t : expected_tensors(config)) {
    if (!t.name.ends_with("down_proj.weight")) continue;
    const std::string_view type = precision.type_of(config, t).name;
    EXPECT_TRUE(type == "Q5_0" || type == "Q8_0") << t.name << " " << type;
  }
}

TEST(PlanFacts, EveryClusterCardIsReadAndComesBackFromItsJson) {
  EXPECT_GE(cluster_cards().size(), 10u);
  for (const Card& card : cluster_cards()) {
    const Cluster cluster = find_cluster(std::string(card.name));
    EXPECT_GT(cluster.ranks(), 0);
    const nlohmann::json written = cluster.to_json();
    EXPECT_EQ(nlohmann::json(Cluster::from_json(written, cluster.name).to_json()), written) << card.name;
  }
}

TEST(PlanFacts, NonsenseIsRefusedWithTheFieldsName) {
  const auto error_of = [](const std::function<void()>& f) -> std::string {
    try {
      f();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const nlohmann::json good = Cluster(find_cluster("h800x8")).to_json();
  const auto broken = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    return error_of([&] { Cluster::from_json(bad, "test"); });
  };
  EXPECT_NE(broken("/groups/0/device/memory_gb", 0).find("memory_gb is 0"), std::string::npos);
  EXPECT_NE(broken("/groups/0/device/memory_gb", nullptr).find("memory_gb is missing"), std::string::npos);
  EXPECT_NE(broken("/groups/0/device/memory_bandwidth_gb_s", -1).find("memory_bandwidth_gb_s"), std::string::npos);
  EXPECT_NE(broken("/groups/0/ranks_per_node", 0).find("ranks_per_node is 0"), std::string::npos);
  EXPECT_NE(broken("/groups/0/nodes", -4).find("nodes is -4"), std::string::npos);
  EXPECT_NE(broken("/groups", nlohmann::json::array()).find("groups"), std::string::npos);
  EXPECT_NE(broken("/groups/0/device/tflops", nullptr).find("tflops is missing"), std::string::npos);
  EXPECT_NE(broken("/groups/0/device/kind", "abacus").find("kind"), std::string::npos);
  EXPECT_NE(error_of([] { find_cluster("h900x8"); }).find("h800x8"), std::string::npos) << "lists what there is";
  EXPECT_NE(error_of([] { find_model("deepseek-r9"); }).find("deepseek-r1"), std::string::npos);
  EXPECT_NE(error_of([] { Precision::from_name("fp3"); }).find("Q4_K_M"), std::string::npos);
}

/// The planner knows nothing of kernels, so their sizes are in both.
TEST(PlanFacts, CpuRanksHoldBlocksAsKernelsPackThem) {
  int packed = 0;
  for (const char* name :
       {"Q4_0",  "Q4_1",    "Q5_0",   "Q5_1",  "Q8_0",    "Q2_K",  "Q3_K",   "Q4_K",   "Q5_K",  "Q6_K",  "IQ1_S",
        "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"}) {
    const PackedFormat* format = packed_format(*find_format(name));
    ASSERT_NE(format, nullptr) << name;
    Matrix m(*format, 32, 512);
    EXPECT_EQ(weight_type(name).held().bytes(32, 512), m.bytes()) << name;
    ++packed;
  }
  EXPECT_EQ(packed, 22);
}

}  // namespace
}  // namespace shoal
