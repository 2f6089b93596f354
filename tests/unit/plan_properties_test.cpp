#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>

#include "planner/cards.h"
#include "planner/plan.h"
#include "planner/rebalance.h"

// What must hold of every placement, plan and re-placement, on inputs that RapidCheck makes up and, where one fails,
// makes smaller.
namespace shoal {
namespace {

using Loads = std::vector<double>;

struct Problem {
  Loads loads;
  ExpertRanks ranks;
  int n_group;
};

/// Loads of any skew, zeros among them, and ranks with room enough.
Problem any_problem() {
  const int ranks = *rc::gen::inRange(1, 12), n_group = *rc::gen::element(1, 4, 8);
  const int experts = n_group * *rc::gen::inRange(1, 40 / n_group);
  Problem p{{}, ExpertRanks::equal(ranks, *rc::gen::inRange(1, ranks + 1), experts, *rc::gen::inRange(0, 20)), n_group};
  for (int e = 0; e < experts; ++e) {
    const double base = *rc::gen::inRange(0, 100);
    p.loads.push_back(base * base * (*rc::gen::inRange(0, 10) == 0 ? 100 : 1));
  }
  return p;
}

void assert_sound(const LayerPlacement& placement, const Problem& p) {
  std::vector<int> held(p.ranks.slots.size());
  RC_ASSERT(placement.size() == p.loads.size());
  for (const auto& replicas : placement) {
    RC_ASSERT(!replicas.empty());  // every expert is somewhere
    double sum = 0;
    for (std::size_t i = 0; i < replicas.size(); ++i) {
      RC_ASSERT(replicas[i].rank >= 0 && replicas[i].rank < p.ranks.size());
      if (i > 0) RC_ASSERT(replicas[i - 1].rank < replicas[i].rank);  // RC_ASSERT evaluates both sides of ||
      RC_ASSERT(replicas[i].share >= 0);
      sum += static_cast<double>(replicas[i].share);
      ++held[static_cast<std::size_t>(replicas[i].rank)];
    }
    RC_ASSERT(std::abs(sum - 1) < 1e-5);
  }
  for (std::size_t r = 0; r < held.size(); ++r) RC_ASSERT(held[r] <= p.ranks.slots[r]);  // within its memory
}

double largest(const LayerPlacement& placement, const Problem& p) {
  const auto sums = rank_loads(placement, p.loads, p.ranks);
  return *std::max_element(sums.begin(), sums.end());
}

TEST(PlanProperties, PlacementsAreSoundAndNotBelowTheBound) {
  EXPECT_TRUE(rc::check([] {
    const Problem p = any_problem();
    const LayerPlacement placement = place_experts(p.loads, p.ranks, p.n_group);
    assert_sound(placement, p);
    RC_ASSERT(load_bound(p.loads, p.ranks, 1, true) <= largest(placement, p) * (1 + 1e-5) + 1e-9);
  }));
}

TEST(PlanProperties, RebalancingIsSoundAndNeverWorse) {
  EXPECT_TRUE(rc::check([] {
    Problem p = any_problem();
    const LayerPlacement now = place_experts(p.loads, p.ranks, 1);
    p.loads = *rc::gen::container<Loads>(
        p.loads.size(), rc::gen::map(rc::gen::inRange(0, 1000), [](int n) { return static_cast<double>(n); }));
    const Rebalanced found = rebalance(now, p.loads, p.ranks);
    assert_sound(found.placement, p);
    RC_ASSERT(found.after <= found.before);
    RC_ASSERT(found.moves == moved_replicas(now, found.placement));
  }));
}

TEST(PlanProperties, MoreMemoryNeverMakesAPlanWorse) {
  EXPECT_TRUE(rc::check([] {
    PlanRequest r{.model = *rc::gen::element<std::string>("deepseek-v2-lite", "deepseek-r1-distill-qwen-7b"),
                  .config = {},
                  .precision = Precision::from_name(*rc::gen::element<std::string>("bf16", "fp8", "Q4_K_M"))};
    r.config = find_model(r.model);
    r.cluster = find_cluster(*rc::gen::element<std::string>("h100x8", "rtx4090x8", "zen4-2s"));
    r.cluster.groups[0].nodes = 1;
    r.workload.context = *rc::gen::inRange(1, 8192);
    r.workload.concurrency = *rc::gen::inRange(1, 64);
    r.cluster.groups[0].device.memory_bytes = *rc::gen::inRange(1, 100) * 1e9;
    const HeldWeights weights(r.config, r.precision, r.cluster.groups[0].device.kind);
    const bool before = fits(r, weights);
    r.cluster.groups[0].device.memory_bytes *= 1 + *rc::gen::inRange(0, 100) / 100.0;
    RC_ASSERT(fits(r, weights) || !before);
    if (!before) return;  // what would make it fit is looked for at length
    const Plan plan = make_plan(r);
    for (std::size_t rank = 0; rank < plan.memory.size(); ++rank)
      RC_ASSERT(plan.memory[rank].total() <= r.cluster.device_of(static_cast<int>(rank)).memory_bytes);
  }));
}

}  // namespace
}  // namespace shoal
