#include "planner/expert_placement.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/index.h"
#include "planner/balance.h"
#include "planner/expert_trees.h"
#include "planner/flat_bound.h"

namespace shoal {
namespace {

/// Ranks of a node: first, and how many.
struct Node {
  std::size_t first = 0, count = 0;
};

std::vector<Node> nodes_of(const ExpertRanks& ranks) {
  std::vector<Node> nodes;
  for (std::size_t r = 0; r < ranks.node.size(); ++r) {
    if (r == 0 || ranks.node[r] != ranks.node[r - 1]) nodes.push_back({r, 0});
    ++nodes.back().count;
  }
  return nodes;
}

bool equal_nodes(const ExpertRanks& ranks, const std::vector<Node>& nodes) {
  for (const Node& n : nodes) {
    if (n.count != nodes[0].count) return false;
    for (std::size_t i = 0; i < n.count; ++i)
      if (ranks.slots[n.first + i] != ranks.slots[i] || ranks.speed[n.first + i] != ranks.speed[i]) return false;
  }
  return true;
}

/// Whether groups stay on nodes: every node then gets the same number of groups.
bool hierarchical(std::span<const double> loads, const ExpertRanks& ranks, int n_group) {
  const auto nodes = nodes_of(ranks);
  const auto n = static_cast<int>(nodes.size());
  return n_group > 1 && loads.size() % at(n_group) == 0 && n > 1 && n_group >= n && n_group % n == 0 &&
         equal_nodes(ranks, nodes);
}

std::vector<double> group_loads(std::span<const double> loads, int n_group) {
  std::vector<double> sums(at(n_group));
  const std::size_t size = loads.size() / at(n_group);
  for (std::size_t e = 0; e < loads.size(); ++e) sums[e / size] += loads[e];
  return sums;
}

/// Groups into nodes, the same number each, so that the largest node load is the smallest possible: largest first, then
/// exchanges, then a search through all packings where they are few.
class GroupPacking {
 public:
  GroupPacking(std::vector<double> loads, int nodes)
      : loads_(std::move(loads)),
        per_node_(loads_.size() / at(nodes)),
        sum_(at(nodes)),
        count_(at(nodes)),
        node_(loads_.size()) {
    order_.resize(loads_.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) { return loads_[a] > loads_[b]; });
    bound_ = std::max(loads_[order_[0]], std::accumulate(loads_.begin(), loads_.end(), 0.0) / nodes);
    search(0, 0);
  }
  /// [groups] of the best packing; of the greedy one, which is worse for nodes, but may be better for their ranks.
  const std::vector<int>& best() const { return best_node_; }
  const std::vector<int>& greedy() const { return greedy_node_; }
  double largest() const { return best_; }

 private:
  /// Depth first, least loaded node first: the first packing found is the greedy one, and branches that cannot beat the
  /// best are cut. Stops at the bound, and after a number of steps (16 groups and fewer never need as many).
  void search(std::size_t depth, double largest) {
    if (largest >= best_ || ++steps_ > 200'000 || best_ <= bound_ * (1 + 1e-12)) return;
    if (depth == order_.size()) {
      best_ = largest;
      best_node_ = node_;
      if (greedy_node_.empty()) greedy_node_ = node_;
      return;
    }
    const std::size_t group = order_[depth];
    std::vector<std::size_t> nodes(sum_.size());
    std::iota(nodes.begin(), nodes.end(), 0);
    std::stable_sort(nodes.begin(), nodes.end(), [&](std::size_t a, std::size_t b) { return sum_[a] < sum_[b]; });
    bool tried_empty = false;
    for (const std::size_t n : nodes) {
      if (count_[n] == per_node_ || (count_[n] == 0 && tried_empty)) continue;
      tried_empty |= count_[n] == 0;  // empty nodes are all alike
      sum_[n] += loads_[group];
      ++count_[n];
      node_[group] = static_cast<int>(n);
      search(depth + 1, std::max(largest, sum_[n]));
      sum_[n] -= loads_[group];
      --count_[n];
    }
  }

  std::vector<double> loads_;
  std::size_t per_node_;
  std::vector<double> sum_;
  std::vector<std::size_t> count_;
  std::vector<int> node_, best_node_, greedy_node_;
  std::vector<std::size_t> order_;
  double bound_ = 0, best_ = 1e300;
  int steps_ = 0;
};

/// Levels above the bound that are tried in turn, and experts to be cut: those above these parts of the level.
constexpr double slacks[] = {1.0008, 1.004, 1.01, 1.02, 1.04, 1.08};
constexpr double cut_above[] = {1.0, 0.8, 0.6, 0.4, 0.2, 0};
constexpr double most_slack = 1.08, paired_step = 0.004;
constexpr int few_slots = 4;
/// Levels that are searched for below the one that was found.
constexpr double search_below[] = {0.99, 0.98};
constexpr int search_steps = 60'000;

/// A placement that fills ranks just to the lowest level for which that works; the best of those tried where none does.
std::optional<Balance> fill(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed,
                            double bound) {
  const double slowest = *std::min_element(speed.begin(), speed.end());
  std::optional<Balance> best;
  const auto keep = [&](Balance&& found) {
    if (!best || found.largest() < best->largest()) best.emplace(std::move(found));
  };
  for (double slack = 1; slack < most_slack; slack += paired_step) {
    if (best && bound * slack > best->largest() * 1.015) break;
    Balance paired(loads, slots, speed);
    if (!paired.place_paired(bound * slack)) continue;
    paired.improve(bound * slacks[0]);  // a level that is aimed too high may end lower than one that is just right
    keep(std::move(paired));
    if (best->largest() <= bound * slacks[1]) break;
  }
  for (const double slack : slacks) {
    if (best && best->largest() <= bound * slack * (1 + 1e-9)) return best;
    int last = -1;
    for (const double part : cut_above) {
      const double least = part * bound * slack * slowest;
      const auto split =
          static_cast<int>(std::count_if(loads.begin(), loads.end(), [&](double w) { return w > least; }));
      if (split == last) continue;
      last = split;
      Balance filled(loads, slots, speed);
      if (filled.place_filling(split, bound * slack)) keep(std::move(filled));
    }
  }
  return best;
}

std::optional<Balance> from_scratch(std::span<const double> loads, std::span<const int> slots,
                                    std::span<const double> speed) {
  Balance placed(loads, slots, speed);
  placed.place_from_scratch();
  return placed;
}

/// Searched for among the ways of joining experts by ranks, where these are equal and have two slots each. (Without
/// spare slots all trees are pairs, the largest with the smallest, which is what there is.)
std::optional<Balance> regroup(const Balance& placed, std::span<const double> loads, std::span<const int> slots,
                               std::span<const double> speed, double bound) {
  if (slots[0] != 2 || !equal_ranks(slots, speed) || loads.size() <= slots.size() || loads.size() == 2 * slots.size())
    return {};
  const ExpertTrees start(loads, placed.placement(), static_cast<int>(slots.size()));
  std::optional<ExpertTrees> best;
  for (const double part : search_below) {
    const double level = std::max(part * placed.largest(), bound);
    if (best && best->largest() <= level * speed[0]) break;
    ExpertTrees trees = start;
    trees.search(level * speed[0], search_steps);
    if (!best || trees.largest() < best->largest()) best.emplace(std::move(trees));
  }
  Balance regrouped(loads, slots, speed);
  regrouped.start_with(best->placement());
  return regrouped;
}

LayerPlacement place_flat(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed) {
  const double bound = flat_bound(loads, slots, speed), aim = bound * slacks[0];
  // Ranks of few slots have to be filled to the point; with many, exchanges get there, and sooner.
  const bool few = *std::max_element(slots.begin(), slots.end()) <= few_slots;
  std::optional<Balance> best;
  for (const bool filling : {few, !few}) {
    std::optional<Balance> found = filling ? fill(loads, slots, speed, bound) : from_scratch(loads, slots, speed);
    if (!found) continue;
    found->improve(aim);
    if (!best || found->largest() < best->largest()) best.emplace(std::move(*found));
    if (best->largest() <= aim) break;
  }
  if (best->largest() > aim) {
    std::optional<Balance> regrouped = regroup(*best, loads, slots, speed, bound);
    if (regrouped && regrouped->largest() < best->largest()) best.swap(regrouped);
  }
  return best->placement();
}

void check(std::span<const double> loads, const ExpertRanks& ranks) {
  if (loads.empty() || ranks.size() == 0) fail("a placement needs experts and ranks");
  for (const double load : loads)
    if (!(load >= 0) || load > 1e300) fail("an expert's load is {}, and must be zero or above", load);
  for (const double speed : ranks.speed)
    if (!(speed > 0)) fail("a rank's speed is {}, and must be above zero", speed);
  const int slots = std::accumulate(ranks.slots.begin(), ranks.slots.end(), 0);
  if (slots < static_cast<int>(loads.size()))
    throw Error(fmt::format("{} experts of a layer do not fit into the {} slots of {} ranks", loads.size(), slots,
                            ranks.size()),
                ExitCode::does_not_fit);
}

/// Each node's groups onto its own ranks.
LayerPlacement place_in_nodes(std::span<const double> loads, const ExpertRanks& ranks,
                              const std::vector<int>& node_of_group) {
  const auto nodes = nodes_of(ranks);
  const std::size_t group_size = loads.size() / node_of_group.size();
  LayerPlacement placement(loads.size());
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    std::vector<std::size_t> experts;
    std::vector<double> mine;
    for (std::size_t e = 0; e < loads.size(); ++e) {
      if (node_of_group[e / group_size] != static_cast<int>(n)) continue;
      experts.push_back(e);
      mine.push_back(loads[e]);
    }
    const auto [first, count] = nodes[n];
    const LayerPlacement part =
        place_flat(mine, std::span(ranks.slots).subspan(first, count), std::span(ranks.speed).subspan(first, count));
    for (std::size_t i = 0; i < experts.size(); ++i)
      for (const Replica& r : part[i])
        placement[experts[i]].push_back({r.rank + static_cast<std::int32_t>(first), r.share});
  }
  return placement;
}

}  // namespace

ExpertRanks ExpertRanks::equal(int ranks, int ranks_per_node, int experts, int redundant) {
  ExpertRanks r;
  r.slots.assign(at(ranks), (experts + redundant + ranks - 1) / ranks);
  // Without replicas, no rank has a slot too many.
  for (int i = experts; redundant == 0 && i < r.slots[0] * ranks; ++i) --r.slots[at(ranks - 1 - (i - experts))];
  r.speed.assign(at(ranks), 1.0);
  for (int i = 0; i < ranks; ++i) r.node.push_back(i / ranks_per_node);
  return r;
}

std::vector<double> rank_loads(const LayerPlacement& placement, std::span<const double> loads,
                               const ExpertRanks& ranks) {
  std::vector<double> sums(at(ranks.size()));
  for (std::size_t e = 0; e < placement.size(); ++e)
    for (const Replica& r : placement[e]) sums[at(r.rank)] += loads[e] * static_cast<double>(r.share);
  for (std::size_t r = 0; r < sums.size(); ++r) sums[r] /= ranks.speed[r];
  return sums;
}

double load_bound(std::span<const double> loads, const ExpertRanks& ranks, int n_group, bool thorough) {
  check(loads, ranks);
  const double flat = flat_bound(loads, ranks.slots, ranks.speed);
  if (!hierarchical(loads, ranks, n_group))
    return thorough ? pieces_bound(loads, ranks.slots, ranks.speed, flat) : flat;
  const auto nodes = nodes_of(ranks);
  const GroupPacking packing(group_loads(loads, n_group), static_cast<int>(nodes.size()));
  const double node_speed =
      std::accumulate(ranks.speed.begin(), ranks.speed.begin() + static_cast<std::ptrdiff_t>(nodes[0].count), 0.0);
  return std::max(flat, packing.largest() / node_speed);
}

LayerPlacement place_experts(std::span<const double> loads, const ExpertRanks& ranks, int n_group) {
  check(loads, ranks);
  if (!hierarchical(loads, ranks, n_group)) return place_flat(loads, ranks.slots, ranks.speed);

  const GroupPacking packing(group_loads(loads, n_group), static_cast<int>(nodes_of(ranks).size()));
  LayerPlacement best = place_in_nodes(loads, ranks, packing.best());
  if (packing.greedy() == packing.best()) return best;
  LayerPlacement other = place_in_nodes(loads, ranks, packing.greedy());
  const auto largest = [&](const LayerPlacement& p) {
    const auto sums = rank_loads(p, loads, ranks);
    return *std::max_element(sums.begin(), sums.end());
  };
  return largest(other) < largest(best) ? other : best;
}

int moved_replicas(const LayerPlacement& before, const LayerPlacement& after) {
  int moved = 0;
  for (std::size_t e = 0; e < after.size(); ++e)
    for (const Replica& r : after[e])
      moved += std::none_of(before[e].begin(), before[e].end(), [&](const Replica& b) { return b.rank == r.rank; });
  return moved;
}

}  // namespace shoal
