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

/// A request alone takes exactly its steps.
TEST(PlanSimulation, OneRequestTakesItsSteps) {
  const Machine m = machine("h200x8", 2);
  const SimulationResult r = simulate({{5, 1000, 3}}, m.model, m.layout, {.max_batched_tokens = 600});
  const double first = m.model.step({.tokens = 600, .context = 300, .prefill = true}).total +
                       m.model.step({.tokens = 400, .context = 800, .prefill = true}).total;
  const double rest =
      m.model.step({.tokens = 1, .context = 1001}).total + m.model.step({.tokens = 1, .context = 1002}).total;
  EXPECT_NEAR(r.ttft_ms.p50, first / 1e3, 1e-6);
  EXPECT_NEAR(r.tpot_ms.p99, rest / 2 / 1e3, 1e-6);
  EXPECT_NEAR(r.seconds, (first + rest) / 1e6, 1e-9);
  EXPECT_NEAR(r.output_tokens_per_s, 3 / r.seconds, 1e-9);
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
  const auto all = sweep(request, {"fp8", "Q4_K_M"});
  const auto front = pareto_front(all);
  ASSERT_GT(front.size(), 3u);
  EXPECT_LT(front.size(), all.size());
  for (const Operating& f : front)
    for (const Operating& o : all)
      EXPECT_FALSE(o.tpot_ms < f.tpot_ms && o.decode_tokens_per_s_per_node >= f.decode_tokens_per_s_per_node);
  // Fewer users answer faster; more of them get more out of the machines.
  EXPECT_LT(front.front().concurrency, front.back().concurrency);
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
