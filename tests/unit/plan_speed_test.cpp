#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "kernels/backend.h"
#include "planner/cards.h"
#include "planner/speed.h"

namespace shoal {
namespace {

/// One set of constants for all rows (SpeedConstants); some were set while looking at them.
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
    const SpeedModel model(config, Precision::from_name(row.at("precision")), cluster, layout, Workload{},
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
  const SpeedModel model(find_model("deepseek-r1"), Precision::from_name("fp8"), cluster, {32, 1}, Workload{}, 0);
  const double base = model.step({.tokens = 64, .context = 2048}).total;
  EXPECT_LT(base, model.step({.tokens = 128, .context = 2048}).total);
  EXPECT_LT(base, model.step({.tokens = 64, .context = 8192}).total);
  EXPECT_LT(model.step({.tokens = 4096, .context = 2048}, 1.0).total,
            model.step({.tokens = 4096, .context = 2048}, 2.0).total);
  EXPECT_LT(model.step({.tokens = 128, .context = 2048}).total, 2 * base) << "larger batches use the weights better";
}

/// As many tokens as --max-batched-tokens lets into a step, on GPUs too: that is what serve runs.
TEST(PlanSpeed, PromptsAreReadInStepsOfTheWorkload) {
  const ModelConfig config = find_model("deepseek-r1");
  Cluster cluster = find_cluster("h200x8");
  cluster.groups[0].nodes = 4;
  const Layout layout{32, 1};
  const auto predicted = [&](int chunk) {
    const Workload workload{.context = 8192, .concurrency = 32, .max_batched_tokens = chunk};
    const SpeedModel model(config, Precision::from_name("fp8"), cluster, layout, workload, 0);
    const Prediction p = predict(model, workload, layout, 5000, 0);
    const auto step_us = [&](double tokens) {
      return model.step({.tokens = tokens, .context = 2500, .prefill = true}).total;
    };
    EXPECT_NEAR(p.prefill_tokens_per_s, chunk * 32 / step_us(chunk) * 1e6, 1e-6 * p.prefill_tokens_per_s);
    return p;
  };
  const Prediction small = predicted(256), large = predicted(8192);
  EXPECT_GT(large.prefill_tokens_per_s, 1.2 * small.prefill_tokens_per_s) << "weights are read once a step";
  EXPECT_GT(small.ttft_ms, large.ttft_ms);
}

/// Half of the nodes twice as fast: they take two thirds of the experts, so both kinds are ready at the same time.
TEST(PlanSpeed, UnequalNodesShareExpertsInProportion) {
  const ModelConfig config = find_model("deepseek-r1");
  const Precision precision = Precision::from_name("fp8");
  const auto experts_us = [&](const Cluster& cluster) {
    return SpeedModel(config, precision, cluster, {cluster.ranks(), 1}, Workload{}, 0)
        .step({.tokens = 64, .context = 1024})
        .experts;
  };
  Cluster slow = find_cluster("h100x8");
  slow.groups[0].nodes = 4;
  Cluster mixed = slow;
  mixed.groups[0].nodes = 2;
  mixed.groups.push_back(mixed.groups[0]);
  Device& fast = mixed.groups[1].device;
  fast.memory_bytes_per_s *= 2;
  fast.bf16_flops *= 2;
  fast.fp8_flops *= 2;
  EXPECT_NEAR(experts_us(mixed), experts_us(slow) * 4 / 6, experts_us(slow) * 0.02);
}

Device measured_cpu() {
  Device d{.kind = Device::Kind::cpu, .name = "measured"};
  d.memory_bytes = 64e9;
  d.memory_bytes_per_s = 20e9;
  d.bf16_flops = 200e9;
  d.int8_flops = 300e9;
  d.measured = true;
  return d;
}

/// Ranks that share a core: one alone has all of it, all together do no more than one.
TEST(PlanSpeed, RanksThatShareACoreShareItsTime) {
  const ModelConfig config = find_model("deepseek-v2-lite");
  const Precision precision = Precision::from_name("bf16");
  const auto step = [&](int ranks, double mean, double tokens) {
    Cluster cluster;
    cluster.groups.push_back({.nodes = 1, .ranks_per_node = ranks, .device = measured_cpu(), .intra_node = {1e10, 1}});
    Device& d = cluster.groups[0].device;
    d.memory_bytes_per_s /= ranks;
    d.bf16_flops /= ranks;
    d.alone_memory = d.alone_products = ranks;
    return SpeedModel(config, precision, cluster, {ranks, 1}, Workload{}, 0)
        .step({.tokens = tokens, .mean = mean, .at_work = std::min(1.0, mean), .context = 64}, 1);
  };
  const StepTime one = step(1, 1, 1), shared = step(4, 0.25, 1);
  EXPECT_NEAR(shared.dense, one.dense, one.dense * 1e-6) << "the rank with the sequence has the core to itself";
  EXPECT_NEAR(shared.experts, one.experts, one.experts * 1e-6) << "all together read the same experts";
  const StepTime four = step(4, 1, 1);
  EXPECT_NEAR(four.dense, 4 * one.dense, one.dense * 1e-6) << "each rank reads its own copy of the dense weights";
  const StepTime uneven = step(4, 1.25, 2);
  EXPECT_GE(uneven.dense, four.dense) << "they do so where one of them has a token more, too";
}

/// A weight is read and unpacked once a step, and multiplied once a token; by the rates of its type where these are
/// known.
TEST(PlanSpeed, MeasuredRatesOfATypeAreUsed) {
  const ModelConfig config = find_model("deepseek-r1-distill-qwen-7b");
  Cluster cluster;
  cluster.groups.push_back({.nodes = 1, .ranks_per_node = 1, .device = measured_cpu(), .intra_node = {}});
  cluster.groups[0].device.linear["BF16"] = {5e9, 100e9};
  const SpeedModel model(config, Precision::from_name("bf16"), cluster, {1, 1}, Workload{}, 0);
  const double weights = 7.07e9 / SpeedConstants{}.measured.products;  // without the embedding
  EXPECT_NEAR(model.step({.tokens = 1, .context = 1}).dense, weights / 5e9 * 1e6, 0.02e6);
  EXPECT_NEAR(model.step({.tokens = 11, .context = 1}).dense, (weights / 5e9 + 10 * 2 * weights / 100e9) * 1e6, 0.04e6);
  const Cluster read = Cluster::from_json(nlohmann::json(cluster.to_json()), "again");
  EXPECT_EQ(read.groups[0].device.linear.at("BF16").weights_per_s, 5e9);
}

/// Numbers of tokens that were measured are met, between them times rise evenly, and beyond them by the rate of many.
TEST(PlanSpeed, FewTokensTakeWhatWasMeasured) {
  ProductRate rate{.weights_per_s = 10e9, .flops = 100e9, .few = {{4, 8e9}, {16, 2e9}}};
  EXPECT_NEAR(rate.seconds(1e9, 1), 0.1, 1e-9);
  EXPECT_NEAR(rate.seconds(1e9, 4), 0.125, 1e-9);
  EXPECT_NEAR(rate.seconds(1e9, 10), (0.125 + 0.5) / 2, 1e-9);
  EXPECT_NEAR(rate.seconds(1e9, 16), 0.5, 1e-9);
  EXPECT_NEAR(rate.seconds(1e9, 66), 0.5 + 1, 1e-9);
  Cluster cluster;
  cluster.groups.push_back({.nodes = 1, .ranks_per_node = 1, .device = measured_cpu(), .intra_node = {}});
  cluster.groups[0].device.linear["BF16"] = rate;
  nlohmann::json written = cluster.to_json();
  const auto read = Cluster::from_json(written, "again").groups[0].device.linear.at("BF16").few;
  ASSERT_EQ(read.size(), 2u);
  EXPECT_NEAR(read.at(16), 2e9, 1);
  written["groups"][0]["device"]["linear"]["BF16"]["weights_g_s_with"] = {{"one", 1.0}};
  try {
    Cluster::from_json(written, "again");
    FAIL() << "a number of tokens that is none";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("one is no number of tokens"), std::string::npos) << error.what();
  }
}

/// A CPU that computes in BF16 makes each head's own keys and values for tokens enough of one prompt: 320 products of a
/// head, query and position instead of 1,088, and the latents before the chunk unpacked once more.
TEST(PlanSpeed, LongPromptsOnCpusUnpackLatents) {
  const ModelConfig config = find_model("deepseek-r1");
  const Cluster cluster = find_cluster("epyc-9135");
  // Of the time that absorbed attention takes, which is FP32's only one.
  const auto part = [&](const Step& step) {
    const auto time = [&](bool bf16_rows) {
      return SpeedModel(config, Precision::from_name("Q8_0"), cluster, {cluster.ranks(), 1},
                        Workload{.bf16_rows = bf16_rows}, 0)
          .step(step)
          .attention;
    };
    return time(true) / time(false);
  };
  const double unpacking = 3840.0 * 512 * 256 / (512 * 4096.0 * 1088);
  EXPECT_NEAR(part({.tokens = 512, .context = 4096, .prefill = true}), 320 / 1088.0 + unpacking, 1e-6);
  EXPECT_NEAR(part({.tokens = 512, .context = 256, .prefill = true}), 320 / 1088.0, 1e-6) << "nothing lies before it";
  EXPECT_EQ(part({.tokens = 512, .context = 4096}), 1) << "answers";
  EXPECT_EQ(part({.tokens = 512, .context = 64, .sequences = 4, .prefill = true}), 1) << "short prompts";

  const Matrix k_up(DType::bf16, 512, 128), v_up(DType::bf16, 128, 512);
  const auto seeing = prompt_break_even({128, 512, 64}, {std::span(&k_up, 1), std::span(&v_up, 1)});
  ASSERT_TRUE(seeing);
  const double from = 2.0 * static_cast<double>(*seeing);  // tokens, where nothing is cached
  EXPECT_EQ(part({.tokens = from - 1, .context = (from - 1) / 2, .prefill = true}), 1);
  EXPECT_LT(part({.tokens = from, .context = from / 2, .prefill = true}), 1);
}

/// Experts of E4M3 round rows to it, so these travel as such; all others' as BF16 (kernels/cuda/exchange_wire.h).
TEST(PlanSpeed, RowsBetweenGpusAreBytesOnlyForExpertsOfE4m3) {
  const auto exchange = [](const char* precision, const char* card) {
    Cluster cluster = find_cluster(card);
    cluster.groups[0].nodes = 4;
    cluster.inter_node = {1e9, 0};
    cluster.groups[0].intra_node = {1e12, 0};
    return SpeedModel(find_model("deepseek-r1"), Precision::from_name(precision), cluster, {32, 1}, Workload{}, 0)
        .step({.tokens = 64})
        .exchange;
  };
  const double bf16 = exchange("bf16", "h800x8");
  EXPECT_NEAR(exchange("fp8", "h800x8"), bf16 * 3 / 4, bf16 * 1e-6);
  EXPECT_EQ(exchange("fp8", "a100x8"), exchange("bf16", "a100x8")) << "computes them in BF16";
  for (const char* other : {"int8", "int4", "Q8_0", "Q4_K_M", "UD-IQ1_S"}) EXPECT_EQ(exchange(other, "h800x8"), bf16);
}

/// On a CPU rows travel in the type that is computed with, whatever the cache's.
TEST(PlanSpeed, RowsOfFp32TakeTwiceAsLong) {
  Cluster cluster = find_cluster("epyc-9135");
  cluster.groups[0].nodes = 4;
  cluster.inter_node = {1e9, 0};
  cluster.groups[0].intra_node = {1e9, 0};
  const auto exchange = [&](bool bf16_rows, KvType kv) {
    return SpeedModel(find_model("deepseek-r1"), Precision::from_name("fp8"), cluster, {cluster.ranks(), 1},
                      Workload{.kv = kv, .bf16_rows = bf16_rows}, 0)
        .step({.tokens = 64})
        .exchange;
  };
  EXPECT_NEAR(exchange(false, KvType::bf16), 2 * exchange(true, KvType::f32), 1e-6 * exchange(true, KvType::f32));
}

}  // namespace
}  // namespace shoal
