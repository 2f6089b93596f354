#include <gtest/gtest.h>

#include <fstream>

#include "planner/cards.h"
#include "planner/speed.h"

namespace shoal {
namespace {

/// One set of constants for all rows (SpeedConstants), none of them fitted to a row.
TEST(PlanSpeed, WithinAQuarterOfEveryPublishedThroughput) {
  std::ifstream in(std::string(SHOAL_SOURCE_DIR) + "/tests/fixtures/published_throughput.json");
  const auto rows = nlohmann::json::parse(in);
  ASSERT_EQ(rows.size(), 8u);
  for (const auto& row : rows) {
    ModelConfig config = find_model(row.at("model"));
    config.num_experts_per_tok = row.value("num_experts_per_tok", config.num_experts_per_tok);
    Cluster cluster = find_cluster(row.at("cluster"));
    cluster.groups[0].nodes = row.at("nodes");
    const Layout layout{.ranks = cluster.ranks(), .tensor_parallel = row.value("tensor_parallel", 1)};
    const SpeedModel model(config, Precision::from_name(row.at("precision")), cluster, layout, KvType::bf16,
                           row.value("redundant_experts", 0));
    const double tokens = row.at("tokens_per_rank");
    const StepTime time = model.step(
        {.tokens = tokens, .context = row.at("context"), .prefill = row.at("phase").get<std::string>() == "prefill"});
    double predicted = tokens / time.total * 1e6, published = 0;
    if (row.contains("tokens_per_s_per_node")) {
      predicted *= cluster.groups[0].ranks_per_node / (1 - row.value("cache_hit_fraction", 0.0));
      published = row.at("tokens_per_s_per_node");
    } else if (row.contains("tokens_per_s_per_user")) {
      predicted = 1e6 / time.total;
      published = row.at("tokens_per_s_per_user");
    } else {
      published = row.at("tokens_per_s_per_rank");
    }
    EXPECT_GT(predicted / published, 0.75) << row.at("what");
    EXPECT_LT(predicted / published, 1.25) << row.at("what");
    RecordProperty(row.at("cluster").get<std::string>() + "_" + row.at("phase").get<std::string>(),
                   std::to_string(predicted / published));
  }
}

TEST(PlanSpeed, MoreWorkTakesLonger) {
  Cluster cluster = find_cluster("h100x8");
  cluster.groups[0].nodes = 4;
  const SpeedModel model(find_model("deepseek-r1"), Precision::from_name("fp8"), cluster, {32, 1}, KvType::bf16, 0);
  const double base = model.step({.tokens = 64, .context = 2048}).total;
  EXPECT_LT(base, model.step({.tokens = 128, .context = 2048}).total);
  EXPECT_LT(base, model.step({.tokens = 64, .context = 8192}).total);
  EXPECT_LT(model.step({.tokens = 4096, .context = 2048}, 1.0).total,
            model.step({.tokens = 4096, .context = 2048}, 2.0).total);
  EXPECT_GT(model.step({.tokens = 128, .context = 2048}).total, base);
  EXPECT_LT(model.step({.tokens = 128, .context = 2048}).total, 2 * base) << "larger batches use the weights better";
}

}  // namespace
}  // namespace shoal
