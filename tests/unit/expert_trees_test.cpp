#include "planner/expert_trees.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace shoal {
namespace {

/// The least level of all partitions of the experts from `next` on, joined to `trees` (load and experts of each).
double best_partition(const std::vector<double>& loads, std::size_t next, std::vector<std::pair<double, int>>& trees) {
  if (next == loads.size()) {
    double level = 0;
    for (const auto& [load, experts] : trees) level = std::max(level, experts < 2 ? 1e300 : load / (experts - 1));
    return level;
  }
  double best = 1e300;
  for (auto& tree : trees) {
    const bool first = tree.second == 0;
    tree = {tree.first + loads[next], tree.second + 1};
    best = std::min(best, best_partition(loads, next + 1, trees));
    tree = {tree.first - loads[next], tree.second - 1};
    if (first) break;  // trees without experts are all alike
  }
  return best;
}

/// Of a placement that trees made: shares, slots, and all ranks of a tree equally loaded.
void check(const LayerPlacement& placement, const std::vector<double>& loads, int ranks, double largest) {
  std::vector<double> load(static_cast<std::size_t>(ranks));
  std::vector<int> held(static_cast<std::size_t>(ranks));
  for (std::size_t e = 0; e < loads.size(); ++e) {
    double shares = 0;
    int before = -1;
    for (const Replica& r : placement[e]) {
      EXPECT_GT(r.rank, before) << "expert " << e;
      before = r.rank;
      load[static_cast<std::size_t>(r.rank)] += loads[e] * static_cast<double>(r.share);
      ++held[static_cast<std::size_t>(r.rank)];
      shares += static_cast<double>(r.share);
    }
    EXPECT_NEAR(shares, 1, 1e-5) << "expert " << e;
  }
  EXPECT_LE(*std::ranges::max_element(held), 2);
  EXPECT_NEAR(*std::ranges::max_element(load), largest, 1e-5 * largest);
  // An expert's replicas are on ranks of one tree, which all carry the same.
  for (const auto& replicas : placement)
    for (const Replica& r : replicas)
      EXPECT_NEAR(load[static_cast<std::size_t>(r.rank)], load[static_cast<std::size_t>(replicas[0].rank)],
                  1e-5 * largest);
}

/// Dealt out in turn: some ranks hold two, and the others one.
LayerPlacement in_turn(std::size_t experts, int ranks) {
  LayerPlacement placement(experts);
  for (std::size_t e = 0; e < experts; ++e) placement[e].push_back({static_cast<int>(e) % ranks, 1});
  return placement;
}

TEST(ExpertTrees, FindTheBestPartitionNearlyAndSpreadEachTreeEvenly) {
  int found = 0;
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    const std::size_t experts = 4 + static_cast<std::size_t>(round % 6);
    const auto n = static_cast<int>(experts);
    const int fewest = (n + 1) / 2, ranks = fewest + static_cast<int>(random() % static_cast<unsigned>(n - fewest));
    std::vector<double> loads;
    const double power = 1 + round % 4;
    for (std::size_t e = 0; e < experts; ++e)
      loads.push_back(std::pow(static_cast<double>(random() % 1000) / 1000, power) + 1e-3);
    ExpertTrees trees(loads, in_turn(experts, ranks), ranks);
    std::vector<std::pair<double, int>> none(experts - static_cast<std::size_t>(ranks));
    const double best = best_partition(loads, 0, none), before = trees.largest();
    trees.search(best, 20'000);
    EXPECT_GE(trees.largest(), best * (1 - 1e-9)) << "round " << round;
    EXPECT_LE(trees.largest(), best * 1.1) << "round " << round << ", before " << before / best;
    found += trees.largest() <= best * (1 + 1e-5);

    check(trees.placement(), loads, ranks, trees.largest());
  }
  EXPECT_GE(found, 50);
}

TEST(ExpertTrees, StartWithPartsThatAreNoTrees) {
  // Experts 0 and 1 on the same two ranks, 2 alone on one; 3 and 4, 5 and 6 on one each: 7 experts, 5 ranks, 4 parts.
  const LayerPlacement placement = {
      {{0, 0.5f}, {1, 0.5f}}, {{0, 0.5f}, {1, 0.5f}}, {{2, 1}}, {{3, 1}}, {{3, 1}}, {{4, 1}}, {{4, 1}}};
  for (const std::vector<double>& loads : {std::vector<double>{5, 4, 3, 2, 1, 1, 1},
                                           {1, 1, 1, 1, 1, 1, 1},
                                           {7, 0, 0, 0, 0, 0, 0},
                                           {3, 0, 0, 1e-300, 0, 1, 0}}) {
    ExpertTrees trees(loads, placement, 5);
    const double before = trees.largest();
    EXPECT_LE(before, std::max({(loads[0] + loads[1]) / 2, loads[2], loads[3] + loads[4], loads[5] + loads[6]}))
        << "joining raises no load";
    trees.search(before / 2, 5'000);
    check(trees.placement(), loads, 5, trees.largest());
  }
}

}  // namespace
}  // namespace shoal
