#include "planner/rebalance.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <optional>

#include "planner/balance.h"

namespace shoal {
namespace {

constexpr double stuck = 1.05;     // exchanges that end so far above a new placement are given up
constexpr int most_trials = 1000;  // of exchanges taken back, each 10 to 50 us

bool on(const std::vector<Replica>& replicas, std::int32_t rank) {
  return std::ranges::any_of(replicas, [&](const Replica& r) { return r.rank == rank; });
}

/// A replica of `expert` that `rank` has and did not have.
struct Gain {
  std::size_t expert;
  std::int32_t rank;
};

std::vector<Gain> gains(const LayerPlacement& before, const LayerPlacement& after) {
  std::vector<Gain> all;
  for (std::size_t e = 0; e < after.size(); ++e)
    for (const Replica& r : after[e])
      if (!on(before[e], r.rank)) all.push_back({e, r.rank});
  return all;
}

/// Calls `good` with placements that are `after` but for one exchange, until it says yes or `trials` are used up: a
/// rank gives back an expert that it gained and takes again one that it gave, from whoever got it or, where that was a
/// replica given up, from any holder.
bool undo_one(const LayerPlacement& before, const LayerPlacement& after, int& trials,
              const std::function<bool(LayerPlacement&)>& good) {
  const auto try_it = [&](LayerPlacement placement, std::initializer_list<std::size_t> changed) {
    for (const std::size_t e : changed) {
      std::ranges::sort(placement[e], {}, &Replica::rank);
      for (Replica& r : placement[e]) r.share = 1.0f / static_cast<float>(placement[e].size());
    }
    return --trials >= 0 && good(placement);
  };
  for (const Gain& gain : gains(before, after)) {
    const std::size_t expert = gain.expert;
    const std::int32_t rank = gain.rank;
    for (std::size_t lost = 0; lost < before.size() && trials > 0; ++lost) {
      if (!on(before[lost], rank) || on(after[lost], rank)) continue;
      LayerPlacement undone = after;
      std::erase_if(undone[expert], [&](const Replica& r) { return r.rank == rank; });
      undone[lost].push_back({rank, 0});
      for (const Replica& r : before[expert]) {  // back to a rank that had it and gained `lost`
        if (on(after[expert], r.rank) || on(before[lost], r.rank) || !on(after[lost], r.rank)) continue;
        LayerPlacement swapped = undone;
        swapped[expert].push_back({r.rank, 0});
        std::erase_if(swapped[lost], [&](const Replica& x) { return x.rank == r.rank; });
        if (try_it(std::move(swapped), {expert, lost})) return true;
      }
      const bool spared = !undone[expert].empty() && before[lost].size() > after[lost].size();
      if (spared && try_it(std::move(undone), {expert, lost})) return true;
    }
  }
  return false;
}

/// A placement whose ranks are renamed, among those with equal slots and speed, so that many replicas are where `now`
/// has them: pairs of an old and a new name in order of what they have in common. With `whole_nodes` first the nodes,
/// which are equal, are paired in the same way, and then the ranks within a pair.
LayerPlacement renamed(const LayerPlacement& placement, const LayerPlacement& now, const ExpertRanks& ranks,
                       bool whole_nodes) {
  const auto n = ranks.slots.size();
  std::vector<std::vector<int>> common(n, std::vector<int>(n));
  for (std::size_t e = 0; e < now.size(); ++e)
    for (const Replica& mine : placement[e])
      for (const Replica& held : now[e])
        ++common[static_cast<std::size_t>(mine.rank)][static_cast<std::size_t>(held.rank)];
  struct Pair {
    int common;
    std::size_t from, to;
  };
  const auto in_order = [](std::vector<Pair>& pairs) {
    std::ranges::stable_sort(pairs, std::greater{}, &Pair::common);
  };
  std::vector<std::int32_t> new_node(n, -1);  // [nodes]
  if (whole_nodes) {
    const auto nodes = static_cast<std::size_t>(ranks.node.back()) + 1;
    std::vector<Pair> pairs(nodes * nodes);
    for (std::size_t i = 0; i < pairs.size(); ++i) pairs[i] = {0, i / nodes, i % nodes};
    for (std::size_t from = 0; from < n; ++from)
      for (std::size_t to = 0; to < n; ++to)
        pairs[static_cast<std::size_t>(ranks.node[from]) * nodes + static_cast<std::size_t>(ranks.node[to])].common +=
            common[from][to];
    in_order(pairs);
    std::vector<bool> taken(nodes);
    for (const Pair& pair : pairs)
      if (new_node[pair.from] < 0 && !taken[pair.to]) {
        new_node[pair.from] = static_cast<std::int32_t>(pair.to);
        taken[pair.to] = true;
      }
  }
  const auto may_be = [&](std::size_t from, std::size_t to) {
    if (whole_nodes && new_node[static_cast<std::size_t>(ranks.node[from])] != ranks.node[to]) return false;
    return ranks.slots[from] == ranks.slots[to] && ranks.speed[from] == ranks.speed[to];
  };
  std::vector<Pair> pairs;
  for (std::size_t from = 0; from < n; ++from)
    for (std::size_t to = 0; to < n; ++to)
      if (may_be(from, to)) pairs.push_back({common[from][to], from, to});
  in_order(pairs);
  std::vector<std::int32_t> name(n, -1);
  std::vector<bool> taken(n);
  for (const Pair& pair : pairs)
    if (name[pair.from] < 0 && !taken[pair.to]) {
      name[pair.from] = static_cast<std::int32_t>(pair.to);
      taken[pair.to] = true;
    }
  LayerPlacement result = placement;
  for (auto& replicas : result) {
    for (Replica& r : replicas) r.rank = name[static_cast<std::size_t>(r.rank)];
    std::ranges::sort(replicas, {}, &Replica::rank);
  }
  return result;
}

using Allowed = std::function<bool(const LayerPlacement&)>;

/// Takes back exchanges of `best` that are not needed for a largest load of `good`.
LayerPlacement without_needless(const LayerPlacement& now, LayerPlacement best, std::span<const double> loads,
                                const ExpertRanks& ranks, double good, const Allowed& allowed = {}) {
  int trials = most_trials;
  int moved = moved_replicas(now, best);
  while (undo_one(now, best, trials, [&](LayerPlacement& undone) {
    const int still = moved_replicas(now, undone);
    if (still >= moved || (allowed && !allowed(undone))) return false;
    Balance trial(loads, ranks.slots, ranks.speed);
    trial.start_with(undone);
    if (trial.largest() > good) return false;
    best = trial.placement();
    moved = still;
    return true;
  })) {
  }
  return best;
}

double largest(const LayerPlacement& placement, std::span<const double> loads, const ExpertRanks& ranks) {
  return std::ranges::max(rank_loads(placement, loads, ranks));
}

/// `now` with exchanges until the largest load is `aim`, or a new placement where these end far above it.
LayerPlacement rebalance_flat(const LayerPlacement& now, std::span<const double> loads, const ExpertRanks& ranks,
                              double aim) {
  if (largest(now, loads, ranks) <= aim) return now;
  Balance balance(loads, ranks.slots, ranks.speed);
  balance.start_with(now);
  balance.improve(aim);
  LayerPlacement best = balance.placement();
  if (largest(best, loads, ranks) > aim) {
    const LayerPlacement fresh = place_experts(loads, ranks, 1);
    if (largest(fresh, loads, ranks) * stuck < largest(best, loads, ranks)) best = renamed(fresh, now, ranks, false);
  }
  const double good = std::max(aim, largest(best, loads, ranks)) * (1 + 1e-6);  // shares are floats
  return without_needless(now, std::move(best), loads, ranks, good);
}

/// The node of each routing group; none where a group is on several.
std::vector<std::int32_t> nodes_of_groups(const LayerPlacement& placement, const ExpertRanks& ranks, int n_group) {
  const std::size_t size = placement.size() / static_cast<std::size_t>(n_group);
  std::vector<std::int32_t> nodes;
  for (std::size_t e = 0; e < placement.size(); ++e)
    for (const Replica& r : placement[e]) {
      const std::int32_t node = ranks.node[static_cast<std::size_t>(r.rank)];
      if (nodes.size() <= e / size) nodes.push_back(node);
      if (nodes.back() != node) return {};
    }
  return nodes;
}

/// Node by node, groups staying where they are; or, where that is far above it, a new placement of groups on nodes.
LayerPlacement rebalance_nodes(const LayerPlacement& now, std::span<const double> loads, const ExpertRanks& ranks,
                               int n_group, const std::vector<std::int32_t>& node_of_group, double slack) {
  const std::size_t group_size = now.size() / static_cast<std::size_t>(n_group);
  const auto node_of = [&](std::size_t e) { return node_of_group[e / group_size]; };
  struct Node {
    ExpertRanks ranks;
    std::int32_t first = 0;
    std::vector<std::size_t> experts;
    std::vector<double> loads;
    LayerPlacement now;
  };
  std::vector<Node> nodes(static_cast<std::size_t>(ranks.node.back()) + 1);
  for (std::size_t r = 0; r < ranks.node.size(); ++r) {
    Node& node = nodes[static_cast<std::size_t>(ranks.node[r])];
    if (node.ranks.slots.empty()) node.first = static_cast<std::int32_t>(r);
    node.ranks.slots.push_back(ranks.slots[r]);
    node.ranks.speed.push_back(ranks.speed[r]);
    node.ranks.node.push_back(0);
  }
  for (std::size_t e = 0; e < now.size(); ++e) {
    Node& node = nodes[static_cast<std::size_t>(node_of(e))];
    node.experts.push_back(e);
    node.loads.push_back(loads[e]);
    node.now.push_back(now[e]);
    for (Replica& r : node.now.back()) r.rank -= node.first;
  }
  double bound = 0;  // a node need not be better than the one that has most to do
  for (const Node& node : nodes)
    if (!node.experts.empty()) bound = std::max(bound, load_bound(node.loads, node.ranks, 1));

  LayerPlacement best = now;
  for (const Node& node : nodes) {
    if (node.experts.empty()) continue;
    const LayerPlacement evened = rebalance_flat(node.now, node.loads, node.ranks, bound * slack);
    for (std::size_t i = 0; i < node.experts.size(); ++i) {
      best[node.experts[i]] = evened[i];
      for (Replica& r : best[node.experts[i]]) r.rank += node.first;
    }
  }
  const double aim = load_bound(loads, ranks, n_group) * slack;  // wherever the groups are
  if (largest(best, loads, ranks) <= aim) return best;
  const LayerPlacement fresh = place_experts(loads, ranks, n_group);
  const auto whole = [&](const LayerPlacement& p) { return !nodes_of_groups(p, ranks, n_group).empty(); };
  if (!whole(fresh) || largest(fresh, loads, ranks) * stuck >= largest(best, loads, ranks)) return best;
  const double good = std::max(aim, largest(fresh, loads, ranks)) * (1 + 1e-6);  // shares are floats
  return without_needless(now, renamed(fresh, now, ranks, true), loads, ranks, good, whole);
}

}  // namespace

Rebalanced rebalance(const LayerPlacement& now, std::span<const double> loads, const ExpertRanks& of, int n_group,
                     double slack) {
  ExpertRanks ranks = of;
  ranks.slots.assign(ranks.speed.size(), 0);
  for (const auto& replicas : now)
    for (const Replica& r : replicas) ++ranks.slots.at(static_cast<std::size_t>(r.rank));
  const double mean =
      std::accumulate(loads.begin(), loads.end(), 0.0) / std::accumulate(ranks.speed.begin(), ranks.speed.end(), 0.0);
  Rebalanced result{.placement = now};
  if (!(mean > 0)) return result;
  result.before = result.after = largest(now, loads, ranks) / mean;

  std::vector<std::int32_t> node_of_group;
  if (n_group > 1 && now.size() % static_cast<std::size_t>(n_group) == 0 && ranks.node.back() > 0)
    node_of_group = nodes_of_groups(now, ranks, n_group);
  LayerPlacement best = node_of_group.empty() ? rebalance_flat(now, loads, ranks, load_bound(loads, ranks, 1) * slack)
                                              : rebalance_nodes(now, loads, ranks, n_group, node_of_group, slack);
  const double after = largest(best, loads, ranks) / mean;
  if (after >= result.before) return result;
  result.after = after;
  result.moves = moved_replicas(now, best);
  result.placement = std::move(best);
  return result;
}

}  // namespace shoal
