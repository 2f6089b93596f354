#include "planner/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "base/error.h"
#include "planner/cards.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

PlanRequest request(const std::string& model, const std::string& precision, const std::string& cluster, int nodes) {
  PlanRequest r{.model = model, .config = find_model(model), .precision = Precision::from_name(precision)};
  r.cluster = find_cluster(cluster);
  r.cluster.groups[0].nodes = nodes;
  return r;
}

/// What everyone who has tried knows.
TEST(Plan, FitsWhatFits) {
  EXPECT_FALSE(make_plan(request("deepseek-r1", "fp8", "h800x8", 1)).fits) << "671 GB into 640 GB";
  EXPECT_TRUE(make_plan(request("deepseek-r1", "fp8", "h200x8", 1)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1", "fp8", "h20x8", 2)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1", "fp8", "h800x8", 4)).fits);
  EXPECT_FALSE(make_plan(request("deepseek-r1", "bf16", "h800x8", 2)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1", "UD-IQ1_S", "h100x8", 1)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1", "Q8_0", "epyc-9135", 1)).fits);
  EXPECT_FALSE(make_plan(request("deepseek-r1", "bf16", "epyc-9135", 1)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1-distill-qwen-7b", "bf16", "rtx4090x2", 1)).fits);
  EXPECT_FALSE(make_plan(request("deepseek-r1-distill-llama-70b", "bf16", "rtx4090x2", 1)).fits);
  EXPECT_TRUE(make_plan(request("deepseek-r1", "Q4_K_M", "xeon-amx-2s-24gb", 1)).fits);
}

/// Ranks that share attention would need one node of H20 for R1; serve has its dense parts on every rank, so the plan
/// does not propose it, and says what would do there.
TEST(Plan, OffersOnlyWhatServeRuns) {
  PlanRequest r = request("deepseek-r1", "fp8", "h20x8", 1);
  const Plan alone = make_plan(r);
  EXPECT_FALSE(alone.fits);
  EXPECT_TRUE(alone.served());
  EXPECT_GT(alone.sharing_that_fits, 1);
  r.tensor_parallel = alone.sharing_that_fits;
  const Plan shared = make_plan(r);
  EXPECT_TRUE(shared.fits);
  EXPECT_FALSE(shared.served());
  EXPECT_EQ(shared.to_json()["layout"]["served"], false);
  for (const char* model : {"deepseek-r1", "deepseek-v2-lite", "deepseek-r1-distill-llama-70b"})
    for (const int nodes : {1, 2, 4}) {
      const Plan plan = make_plan(request(model, "fp8", "h100x8", nodes));
      EXPECT_TRUE(plan.served()) << model << " on " << nodes;
      EXPECT_EQ(plan.layout.tensor_parallel, plan.n_routed_experts > 0 ? 1 : 8 * nodes);
    }
}

TEST(Plan, KvCacheOfATokenIsWhatThePapersSay) {
  EXPECT_EQ(kv_bytes_per_token(find_model("deepseek-r1"), KvType::bf16), 70272);  // arXiv 2505.09343, table 1: 70 KB
  EXPECT_EQ(kv_bytes_per_token(find_model("deepseek-r1-distill-qwen-7b"), KvType::bf16), 57344);
  EXPECT_EQ(kv_bytes_per_token(find_model("deepseek-r1-distill-llama-70b"), KvType::bf16), 327680);
}

/// Each of the changes that a plan proposes, applied to its request, fits.
void expect_changes_fit(const PlanRequest& r, const Plan& plan) {
  for (const std::string& change : plan.changes) {
    PlanRequest changed = r;
    const std::string value = change.substr(change.find(' ') + 1);
    if (change.starts_with("--nodes")) changed.cluster.groups[0].nodes = std::stoi(value);
    if (change.starts_with("--context")) changed.workload.context = std::stoi(value);
    if (change.starts_with("--concurrency")) changed.workload.concurrency = std::stoi(value);
    if (change.starts_with("no --tensor-parallel")) changed.tensor_parallel = 0;
    if (change.starts_with("--precision")) changed.precision = Precision::from_name(value.substr(0, value.find(' ')));
    EXPECT_TRUE(make_plan(changed).fits) << change;
  }
}

TEST(Plan, EveryChangeThatIsOfferedFits) {
  PlanRequest r = request("deepseek-r1", "fp8", "h800x8", 1);
  r.workload = {.context = 65536, .concurrency = 64};
  const Plan plan = make_plan(r);
  ASSERT_FALSE(plan.fits);
  ASSERT_GE(plan.changes.size(), 2u);
  expect_changes_fit(r, plan);
}

/// Also of a plan for engines that cut the dense parts otherwise.
TEST(Plan, EveryChangeThatIsOfferedFitsWithTheTensorParallelismAskedFor) {
  PlanRequest r = request("deepseek-r1-distill-llama-70b", "bf16", "rtx4090x8", 1);
  r.workload = {.context = 8192, .concurrency = 1};
  r.tensor_parallel = 1;
  const Plan plan = make_plan(r);
  ASSERT_FALSE(plan.fits);
  EXPECT_TRUE(std::ranges::any_of(plan.changes, [](const auto& c) { return c.starts_with("no --tensor-parallel"); }));
  expect_changes_fit(r, plan);
}

TEST(Plan, R1OnFortyNodesComesBackFromItsJson) {
  PlanRequest r = request("deepseek-r1", "fp8", "h800x8", 40);
  r.redundant_experts = 64;
  r.workload = {.context = 4096, .concurrency = 40960};
  std::mt19937 random(1);
  for (int layer = 0; layer < 58; ++layer) {
    auto& loads = r.loads.emplace_back();
    for (int e = 0; e < 256; ++e) loads.push_back(1000.0 / (1 + static_cast<double>(random() % 256)));
  }
  const Plan plan = make_plan(r);
  EXPECT_TRUE(plan.fits);
  ASSERT_EQ(plan.memory.size(), 320u);
  const nlohmann::json written = plan.to_json();
  const Plan read = Plan::from_json(written, "plan.json");
  EXPECT_EQ(read.experts, plan.experts);
  EXPECT_EQ(nlohmann::json(read.to_json()), written);

  for (int layer = 0; layer < 61; ++layer) {
    const auto& experts = plan.experts[static_cast<std::size_t>(layer)];
    EXPECT_EQ(experts.size(), layer < 3 ? 0u : 256u);
  }
}

/// A layer takes as long as its own most loaded rank does, whatever the others' loads.
TEST(Plan, OneSkewedLayerSlowsOnlyItself) {
  PlanRequest r = request("deepseek-v2-lite", "bf16", "h100x8", 1);
  r.loads.assign(26, std::vector<double>(64, 1.0));
  const Plan even = make_plan(r);
  r.loads[5].assign(64, 0.0);
  r.loads[5][0] = 64;
  const Plan skewed = make_plan(r);
  EXPECT_NEAR(skewed.imbalance, 8, 1e-6) << "one of 8 ranks has all of the layer";
  EXPECT_NEAR(skewed.mean_imbalance, (25 + 8) / 26.0, 1e-6);
  const double ratio = skewed.prediction.prefill.experts / even.prediction.prefill.experts;
  EXPECT_GT(ratio, 1.1);
  EXPECT_LT(ratio, skewed.mean_imbalance + 0.01);
  const nlohmann::json written = skewed.to_json();
  EXPECT_EQ(nlohmann::json(Plan::from_json(written, "plan.json").to_json()), written);
}

/// Every rank has its part of every expert: as much altogether as without slices, the same on each, whatever the loads.
TEST(Plan, SlicedExpertsAreEvenAndComeBackFromTheirJson) {
  PlanRequest r = request("deepseek-v2-lite", "bf16", "h100x8", 1);
  const Plan whole = make_plan(r);
  r.slice_experts = true;
  r.loads.assign(26, std::vector<double>(64, 1.0));
  for (auto& layer : r.loads) layer[0] = 1000;
  const Plan sliced = make_plan(r);
  EXPECT_TRUE(sliced.layout.sliced_experts);
  EXPECT_NEAR(sliced.imbalance, 1, 1e-6);
  ASSERT_EQ(sliced.memory.size(), 8u);
  for (std::size_t rank = 0; rank < 8; ++rank)
    EXPECT_NEAR(sliced.memory[rank].weights, whole.memory[rank].weights, whole.memory[rank].weights * 1e-6);
  for (const auto& replicas : sliced.experts[1]) EXPECT_EQ(replicas.size(), 8u);
  const nlohmann::json written = sliced.to_json();
  EXPECT_EQ(nlohmann::json(Plan::from_json(written, "plan.json").to_json()), written);
  r.redundant_experts = 8;
  EXPECT_NE(error_of([&] { make_plan(r); }).find("--slice-experts"), std::string::npos);
  r.redundant_experts = 0;
  r.cluster.groups[0].nodes = 32;
  EXPECT_NE(error_of([&] { make_plan(r); }).find("--slice-experts"), std::string::npos) << "1408 wide, 256 ranks";
}

/// What is cut within a block would be loaded as FP32.
TEST(Plan, SlicesEndBetweenBlocks) {
  const auto said = [](const char* model, const char* precision, int ranks) {
    PlanRequest r = request(model, precision, "h200x8", 1);
    r.cluster.groups[0].ranks_per_node = ranks;
    r.slice_experts = true;
    return error_of([&] { make_plan(r); });
  };
  EXPECT_EQ(said("deepseek-r1", "Q4_K_M", 8), "");
  EXPECT_NE(said("deepseek-r1", "Q4_K_M", 16).find("up to 8 ranks"), std::string::npos) << "2048 wide, blocks of 256";
  EXPECT_EQ(said("deepseek-r1", "int4", 16), "");
  EXPECT_NE(said("deepseek-r1", "int4", 32).find("up to 16 ranks"), std::string::npos) << "groups of 128";
  EXPECT_EQ(said("deepseek-r1", "bf16", 128), "");
  EXPECT_EQ(said("deepseek-r1", "fp8", 128), "") << "gets finer scales";
  EXPECT_NE(said("deepseek-r1-distill-qwen-7b", "bf16", 2).find("no experts"), std::string::npos);
}

/// More machines than experts have slices for are not proposed.
TEST(Plan, ChangesOfSlicedPlansFit) {
  for (const int concurrency : {64, 1024}) {
    PlanRequest r = request("deepseek-r1", "bf16", "h800x8", 1);
    r.slice_experts = true;
    r.workload = {.context = 131072, .concurrency = concurrency};
    const Plan plan = make_plan(r);
    ASSERT_FALSE(plan.fits);
    expect_changes_fit(r, plan);
    const bool nodes = std::ranges::any_of(plan.changes, [](const auto& c) { return c.starts_with("--nodes"); });
    EXPECT_EQ(nodes, concurrency < 1024) << concurrency << " sequences of 9.2 GB, on 128 ranks of 80 GB at most";
  }
}

/// 16 blocks on 12 ranks: four have two, and the others wait for them as long as 8 ranks would take.
TEST(Plan, UnevenSlicesWaitForTheLargest) {
  const auto plan_for = [](int ranks) {
    PlanRequest r = request("deepseek-r1", "fp8", "h200x8", 1);
    r.cluster.groups[0].ranks_per_node = ranks;
    r.tensor_parallel = 1;
    r.slice_experts = true;
    return make_plan(r);
  };
  const Plan even = plan_for(8), uneven = plan_for(12);
  EXPECT_NEAR(even.imbalance, 1, 1e-9);
  EXPECT_NEAR(uneven.imbalance, 1.5, 1e-9);
  EXPECT_NEAR(uneven.prediction.decode.experts, even.prediction.decode.experts, even.prediction.decode.experts * 1e-6);
}

/// A rank computes its slice of all experts of all ranks' tokens, and packs a row for each of these.
TEST(Plan, SlicesNeedWorkingMemoryForAllRanksTokens) {
  for (const char* cluster : {"h200x8", "epyc-9135"}) {
    PlanRequest r = request("deepseek-r1", "fp8", cluster, 1);
    r.cluster.groups[0].ranks_per_node = 8;
    r.slice_experts = true;
    const double pairs = 8.0 * r.workload.max_batched_tokens * r.config.num_experts_per_tok;
    EXPECT_GT(make_plan(r).memory[0].activations, pairs * r.config.hidden_size * 2) << cluster;
  }
}

/// Ranks that share a dense model attend with their own heads, whose results wait to be merged.
TEST(Plan, RanksThatShareHeadsWaitForTheirOwn) {
  const auto of_context = [](int tensor_parallel) {
    PlanRequest r = request("deepseek-r1-distill-qwen-7b", "bf16", "zen4-2s", 2);
    r.tensor_parallel = tensor_parallel;
    r.workload.context = 512;
    const double little = make_plan(r).memory[0].activations;
    r.workload.context = 16384;
    return make_plan(r).memory[0].activations - little;
  };
  EXPECT_GT(of_context(1), 1e6);
  EXPECT_NEAR(of_context(4), of_context(1) / 4, 1) << "7 of 28 heads";
}

/// A single user's step is shorter where all ranks read for it.
TEST(Plan, SlicesServeASingleUserSooner) {
  PlanRequest r = request("deepseek-r1", "fp8", "h200x8", 1);
  r.tensor_parallel = 1;
  const double whole = make_plan(r).prediction.decode.experts;
  r.slice_experts = true;
  EXPECT_LT(make_plan(r).prediction.decode.experts, whole * 0.6);
}

TEST(Plan, BrokenPlansAreRefusedWithThePlace) {
  PlanRequest r = request("deepseek-v2-lite", "bf16", "h100x8", 1);
  const nlohmann::json good = make_plan(r).to_json();
  const auto broken = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json bad = good;
    bad[nlohmann::json::json_pointer(pointer)] = value;
    return error_of([&] { Plan::from_json(bad, "plan.json"); });
  };
  EXPECT_EQ(error_of([&] { Plan::from_json(good, "plan.json"); }), "");
  const auto says = [](const std::string& message, std::string_view part) {
    return message.find(part) != std::string::npos;
  };
  EXPECT_PRED2(says, broken("/placement/layers/0/experts/5", nlohmann::json::array()),
               "layer 1: expert 5 is on no rank");
  EXPECT_PRED2(says, broken("/placement/layers/0/experts/5/0", {8, 1.0}), "is on rank 8, and there are 8");
  EXPECT_PRED2(says, broken("/placement/layers/0/experts/5/0", {2, 0.5}), "shares add up to 0.5");
  EXPECT_PRED2(says, broken("/placement/layers/0/experts/5", {{2, 0.5}, {2, 0.5}}), "none twice");
  EXPECT_PRED2(says, broken("/layout/ranks", 0), "ranks is 0");
  EXPECT_PRED2(says, broken("/layout/ranks", 16), "16 ranks, and the cluster 8");
  EXPECT_PRED2(says, broken("/version", 2), "version");
  EXPECT_PRED2(says, broken("/workload/context", -1), "context is -1");
  EXPECT_PRED2(says, broken("/memory/ranks", nlohmann::json::array()), "ranks");
  EXPECT_PRED2(says, broken("/placement/layers/1/layer", 1), "comes twice");
}

TEST(Plan, NonsenseIsRefusedWithTheFieldsName) {
  const auto refused = [](const std::function<void(PlanRequest&)>& change) {
    PlanRequest r = request("deepseek-v2-lite", "bf16", "h100x8", 1);
    change(r);
    return error_of([&] { make_plan(r); });
  };
  EXPECT_NE(refused([](auto& r) { r.workload.context = -5; }).find("--context is -5"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.workload.context = 1 << 20; }).find("163840"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.workload.concurrency = 0; }).find("--concurrency is 0"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.tensor_parallel = 3; }).find("--tensor-parallel is 3"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.redundant_experts = -1; }).find("--redundant-experts"), std::string::npos);
  EXPECT_NE(refused([](auto& r) { r.loads = {{1, 2}}; }).find("has 64 experts"), std::string::npos);
}

/// Seeded, so that a failure comes again.
TEST(Plan, MoreMemoryNeverMakesAPlanWorse) {
  std::mt19937 random(2);
  const char* models[] = {"deepseek-r1", "deepseek-v2-lite", "deepseek-v2", "deepseek-r1-distill-qwen-14b"};
  const char* precisions[] = {"fp8", "bf16", "Q4_K_M", "int4"};
  const char* clusters[] = {"h100x8", "a100x8", "rtx4090x8", "spr-2s"};
  for (int round = 0; round < 12; ++round) {
    const auto pick = [&](const auto& list) { return list[random() % 4]; };
    PlanRequest r = request(pick(models), pick(precisions), pick(clusters), 1 + static_cast<int>(random() % 4));
    r.workload = {.context = 1024 << (random() % 5), .concurrency = 1 << (random() % 6)};
    SCOPED_TRACE(testing::Message() << r.model << " " << r.precision.name() << " on " << r.cluster.name);
    bool before = false;
    for (const double factor : {0.5, 1.0, 2.0, 4.0}) {
      PlanRequest larger = r;
      larger.cluster.groups[0].device.memory_bytes *= factor;
      const Plan plan = make_plan(larger);
      EXPECT_TRUE(plan.fits || !before) << "it fitted into less";
      before = plan.fits;
      double weights = 0;
      for (std::size_t rank = 0; rank < plan.memory.size(); ++rank) {
        weights += plan.memory[rank].weights;
        if (plan.fits) {
          EXPECT_LE(plan.memory[rank].total(), larger.cluster.device_of(static_cast<int>(rank)).memory_bytes);
        }
      }
      EXPECT_GE(weights, plan.weights_bytes * 0.999) << "every part of the model is somewhere";
    }
  }
}

TEST(Plan, MixedNodesHoldWhatTheyHaveRoomFor) {
  PlanRequest r = request("deepseek-r1", "fp8", "h100x8", 2);
  NodeGroup large = find_cluster("h200x8").groups[0];
  r.cluster.groups.push_back(large);
  const Plan plan = make_plan(r);
  EXPECT_TRUE(plan.fits);
  EXPECT_GT(plan.memory[20].weights, plan.memory[0].weights);
  for (std::size_t rank = 0; rank < plan.memory.size(); ++rank)
    EXPECT_LE(plan.memory[rank].total(), plan.cluster.device_of(static_cast<int>(rank)).memory_bytes);
}

}  // namespace
}  // namespace shoal
