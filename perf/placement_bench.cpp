// The table of perf/README: the largest rank load of a placement beside DeepSeek's published balancer and the lower
// bound, averaged over the MoE layers of R1, and the time that placing all of them takes on one core.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "planner/expert_placement.h"
#include "tests/unit/eplb_peer.h"

namespace {

using shoal::ExpertRanks;

constexpr int layers = 58, experts = 256;

struct Shape {
  int ranks, redundant, groups;
};

/// Loads with a Zipf law whose order drifts from layer to layer.
std::vector<std::vector<double>> zipf_layers(double exponent) {
  std::mt19937 random(1);
  std::vector<std::size_t> rank_of(experts);
  std::iota(rank_of.begin(), rank_of.end(), 0);
  std::shuffle(rank_of.begin(), rank_of.end(), random);
  std::vector<std::vector<double>> result;
  for (int layer = 0; layer < layers; ++layer) {
    for (int i = 0; i < experts / 4; ++i) std::swap(rank_of[random() % experts], rank_of[random() % experts]);
    auto& loads = result.emplace_back();
    for (const std::size_t r : rank_of)
      loads.push_back(std::floor(1e6 / std::pow(static_cast<double>(r + 1), exponent)) + 1);
  }
  return result;
}

}  // namespace

int main() {
  fmt::print("R1's {} MoE layers of {} experts on nodes of 8 ranks; load of the most loaded rank over the mean\n\n",
             layers, experts);
  fmt::print("| ranks | redundant | groups | Zipf | EPLB | Shoal | bound | Shoal over bound | s, all layers |\n");
  fmt::print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (const Shape& s : {Shape{32, 32, 8}, Shape{32, 32, 1}, Shape{64, 64, 1}, Shape{144, 32, 1}, Shape{160, 64, 1},
                         Shape{192, 128, 1}, Shape{320, 64, 1}, Shape{320, 384, 1}}) {
    for (const double exponent : {0.5, 1.0, 1.5}) {
      double ours = 0, peer = 0, bound = 0, seconds = 0;
      for (const auto& loads : zipf_layers(exponent)) {
        const ExpertRanks ranks = ExpertRanks::equal(s.ranks, 8, experts, s.redundant);
        const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / s.ranks;
        const auto start = std::chrono::steady_clock::now();
        const auto placement = shoal::place_experts(loads, ranks, s.groups);
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        const auto sums = shoal::rank_loads(placement, loads, ranks);
        ours += *std::max_element(sums.begin(), sums.end()) / mean / layers;
        bound += shoal::load_bound(loads, ranks, s.groups, true) / mean / layers;
        const int nodes = s.groups == 1 ? 1 : s.ranks / 8;
        const auto slots = shoal::Eplb::place(loads, experts + s.redundant, s.groups, nodes, s.ranks);
        peer += shoal::Eplb::largest(slots, loads, s.ranks) / mean / layers;
      }
      fmt::print("| {} | {} | {} | {} | {:.3f} | {:.3f} | {:.3f} | {:+.2f} % | {:.2f} |\n", s.ranks, s.redundant,
                 s.groups, exponent, peer, ours, bound, 100 * (ours / bound - 1), seconds);
    }
  }
}
