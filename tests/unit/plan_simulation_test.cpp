#include <gtest/gtest.h>

#include <chrono>

#include "base/error.h"
#include "launch/sweep_plot.h"
#include "planner/cards.h"
#include "planner/simulation.h"
#include "planner/sweep.h"

namespace shoal {
namespace {

struct Machine {
  Cluster cluster;
  Layout layout;
  SpeedModel model;
};

Machine machine(const char* card, int nodes) {
  Cluster cluster = find_cluster(card);
  cluster.groups[0].nodes = nodes;
  const Layout layout{cluster.ranks(), 1};
  return {cluster, layout,
          SpeedModel(find_model("deepseek-r1"), Precision::from_name("fp8"), cluster, layout, Workload{}, 0)};
}

/// A request alone takes exactly its steps, on one of the groups; experts get its tokens alone.
TEST(PlanSimulation, OneRequestTakesItsSteps) {
  const Machine m = machine("h200x8", 2);
  const SimulationResult r = simulate({{5, 1000, 3}}, m.model, m.layout, {.max_batched_tokens = 600});
  const auto step = [&](double tokens, double context, bool prefill) {
    return m.model.step({.tokens = tokens, .mean = tokens / 16, .context = context, .prefill = prefill}).total;
  };
  const double first = step(600, 300, true) + step(400, 800, true);
  const double rest = step(1, 1001, false) + step(1, 1002, false);
  EXPECT_NEAR(r.ttft_ms.p50, first / 1e3, 1e-6);
  EXPECT_NEAR(r.tpot_ms.p99, rest / 2 / 1e3, 1e-6);
  EXPECT_NEAR(r.seconds, (first + rest) / 1e6, 1e-9);
  EXPECT_NEAR(r.output_tokens_per_s, 3 / r.seconds, 1e-9);
}

/// While one answers, another's prompt takes few tokens of each step.
TEST(PlanSimulation, PromptsLeaveTimeForAnswers) {
  const Machine m = machine("h200x8", 2);
  const SimulationResult r = simulate({{0, 10, 100}, {1e-9, 1000, 1}}, m.model, m.layout,
                                      {.max_batched_tokens = 600, .max_prefill_tokens = 100});
  double us = m.model.step({.tokens = 10, .mean = 10 / 16., .context = 5, .prefill = true}).total;
  EXPECT_NEAR(r.first_token_s[0], us / 1e6, 1e-9);
  for (int i = 0; i < 10; ++i)
    us += m.model.step({.tokens = 100, .mean = 101 / 16., .context = 100. * i + 50, .prefill = true}).total;
  EXPECT_NEAR(r.first_token_s[1], us / 1e6, 1e-9);
}

TEST(PlanSimulation, LoadAndCachedPrefixesDoWhatTheyMust) {
  const Machine m = machine("h200x8", 2);
  const SimulationOptions options{.max_batched_tokens = 4096};
  const auto at_rate = [&](double rate, const SimulationOptions& o) {
    return simulate(poisson_arrivals(400, rate, 2000, 100, 1), m.model, m.layout, o);
  };
  const SimulationResult calm = at_rate(2, options), busy = at_rate(200, options);
  EXPECT_LT(calm.ttft_ms.p50, busy.ttft_ms.p50);
  EXPECT_LT(calm.tpot_ms.p50, busy.tpot_ms.p50);
  EXPECT_GT(busy.output_tokens_per_s, calm.output_tokens_per_s);
  EXPECT_LE(busy.ttft_ms.p50, busy.ttft_ms.p90);
  EXPECT_LE(busy.ttft_ms.p90, busy.ttft_ms.p99);
  SimulationOptions hits = options;
  hits.prefix_hit_fraction = 0.9;
  EXPECT_LT(at_rate(200, hits).ttft_ms.p50, busy.ttft_ms.p50);
  SimulationOptions narrow = options;
  narrow.kv_tokens = 2100;  // one sequence a rank
  EXPECT_GT(at_rate(200, narrow).ttft_ms.p99, busy.ttft_ms.p99);
  narrow.kv_tokens = 2000;
  EXPECT_THROW(at_rate(1, narrow), Error);
}

/// Prompts on ranks of their own do not hold up answers.
TEST(PlanSimulation, DisaggregationSteadiesTheAnswers) {
  const Machine all = machine("h200x8", 8), half = machine("h200x8", 4);
  const auto arrivals = poisson_arrivals(600, 40, 8000, 100, 2);
  const SimulationOptions options{.max_batched_tokens = 8192};
  const SimulationResult together = simulate(arrivals, all.model, all.layout, options);
  const SimulationResult apart =
      simulate_disaggregated(arrivals, half.model, half.layout, options, half.model, half.layout, options);
  EXPECT_LT(apart.tpot_ms.p90, together.tpot_ms.p90);
}

/// Few requests take as long as the plan says of one, though most groups have nothing to do.
TEST(PlanSimulation, AgreesWithThePlanOnOneRequestAtATime) {
  PlanRequest request{
      .model = "deepseek-r1", .config = find_model("deepseek-r1"), .precision = Precision::from_name("fp8")};
  request.cluster = find_cluster("h800x8");
  request.cluster.groups[0].nodes = 4;
  request.workload = {.context = 2001, .concurrency = 1, .max_batched_tokens = 1024};
  request.prompt = 2000;  // two steps
  const Plan plan = make_plan(request);
  const SpeedModel speed(request.config, request.precision, request.cluster, plan.layout, request.workload, 0);
  const SimulationResult r =
      simulate(poisson_arrivals(20, 0.01, 2000, 2, 1), speed, plan.layout, {.max_batched_tokens = 1024});
  EXPECT_NEAR(r.ttft_ms.p50, plan.prediction.ttft_ms, 0.01 * plan.prediction.ttft_ms);
  EXPECT_NEAR(r.tpot_ms.p50, plan.prediction.tpot_ms, 0.01 * plan.prediction.tpot_ms);
}

/// An answer that waits for the ranks that generate it is not told as a quick one.
TEST(PlanSimulation, WaitingBetweenThePoolsIsPartOfATokensTime) {
  const Machine half = machine("h200x8", 1);
  SimulationOptions narrow;
  narrow.max_num_seqs = 1;  // of a group
  const auto arrivals = poisson_arrivals(200, 1000, 500, 50, 4);
  const SimulationResult r =
      simulate_disaggregated(arrivals, half.model, half.layout, {}, half.model, half.layout, narrow);
  // 200 answers on 8 groups, one after the other: the last waits for 24 others.
  EXPECT_GT(r.tpot_ms.p99, 5 * half.model.step({.tokens = 1, .mean = 1, .context = 550}).total / 1e3);
  for (std::size_t i = 0; i < arrivals.size(); ++i) EXPECT_GT(r.last_token_s[i], r.first_token_s[i]);
  // Two tokens are a token's time, too.
  const SimulationResult two = simulate_disaggregated(poisson_arrivals(50, 1000, 500, 2, 4), half.model, half.layout,
                                                      {}, half.model, half.layout, narrow);
  EXPECT_GT(two.tpot_ms.p50, 0);
}

TEST(PlanSimulation, ThousandsOfRanks) {
  const Machine m = machine("h800x8", 512);
  const SimulationResult r =
      simulate(poisson_arrivals(20000, 4000, 1000, 30, 3), m.model, m.layout, {.max_batched_tokens = 4096});
  EXPECT_GT(r.output_tokens_per_s, 0);
  EXPECT_EQ(r.first_token_s.size(), 20000u);
}

TEST(PlanSweep, TheFrontIsNotBeaten) {
  PlanRequest request{
      .model = "deepseek-r1", .config = find_model("deepseek-r1"), .precision = Precision::from_name("fp8")};
  request.cluster = find_cluster("h800x8");
  request.cluster.groups[0].nodes = 8;
  const auto all = sweep(request, {Precision::from_name("fp8"), Precision::from_name("Q4_K_M")});
  const auto front = pareto_front(all);
  ASSERT_GT(front.size(), 3u);
  EXPECT_LT(front.size(), all.size());
  for (const Operating& f : front)
    for (const Operating& o : all)
      EXPECT_FALSE(o.tpot_ms < f.tpot_ms && o.decode_tokens_per_s_per_node >= f.decode_tokens_per_s_per_node);
  // Fewer users answer faster; more of them get more out of the machines.
  EXPECT_LT(front.front().concurrency, front.back().concurrency);
}

/// A file's own types are no mix that has a name.
TEST(PlanSweep, TakesWhatAFileHolds) {
  const ModelConfig config = find_model("deepseek-r1-distill-qwen-7b");
  std::map<std::string, const WeightType*, std::less<>> types;
  for (const ExpectedTensor& t : expected_tensors(config))
    types[t.name] = &weight_type(t.shape.size() < 2 ? "F32" : "Q4_K");
  PlanRequest request{.model = "a file", .config = config, .precision = Precision::of_tensors("Q4_K", types)};
  request.cluster = find_cluster("h100x8");
  const auto all = sweep(request, {request.precision});
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.front().precision, "Q4_K");
  request.workload.context = 0;
  EXPECT_THROW(sweep(request, {request.precision}), Error);
}

TEST(PlanSweep, PutsNoReplicasOnASingleRank) {
  PlanRequest request{
      .model = "deepseek-v2-lite", .config = find_model("deepseek-v2-lite"), .precision = Precision::from_name("int8")};
  request.cluster = find_cluster("epyc-9135");
  request.cluster.groups[0].nodes = 1;
  ASSERT_EQ(request.cluster.ranks(), 1);
  for (const Operating& o : sweep(request, {request.precision})) EXPECT_EQ(o.redundant_experts, 0);
}

TEST(Sweep, ThePlotsNumbersHaveTheirCommasBeforeThePoint) {
  const std::vector<Operating> all = {{.tpot_ms = 1000, .decode_tokens_per_s_per_node = 1},
                                      {.tpot_ms = 2000, .decode_tokens_per_s_per_node = 20000}};
  const std::string svg = sweep_plot(all, all, "a title", 1500.5);
  EXPECT_NE(svg.find("target: 1,500.5 ms"), std::string::npos);
  EXPECT_NE(svg.find(">20,000<"), std::string::npos);
}

}  // namespace
}  // namespace shoal
