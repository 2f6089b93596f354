#include "planner/rebalance.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <optional>

#include "planner/balance.h"

namespace shoal {
namespace {

constexpr double stuck = 1.05;  // exchanges that end so far above a new placement are given up

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

/// Placements that are `after` but for one exchange: a rank gives back an expert that it gained and takes again one
/// that it gave, from whoever got it or, where that was a replica given up, from any holder.
std::vector<LayerPlacement> with_one_undone(const LayerPlacement& before, const LayerPlacement& after) {
  std::vector<LayerPlacement> all;
  for (const auto& [expert, rank] : gains(before, after))
    for (std::size_t lost = 0; lost < before.size(); ++lost) {
      if (!on(before[lost], rank) || on(after[lost], rank)) continue;
      LayerPlacement undone = after;
      std::erase_if(undone[expert], [&](const Replica& r) { return r.rank == rank; });
      undone[lost].push_back({rank, 0});
      for (const Replica& r : before[expert]) {  // back to a rank that had it and gained `lost`
        if (on(after[expert], r.rank) || on(before[lost], r.rank) || !on(after[lost], r.rank)) continue;
        LayerPlacement swapped = undone;
        swapped[expert].push_back({r.rank, 0});
        std::erase_if(swapped[lost], [&](const Replica& x) { return x.rank == r.rank; });
        all.push_back(std::move(swapped));
      }
      if (!undone[expert].empty() && before[lost].size() > after[lost].size()) all.push_back(std::move(undone));
    }
  for (LayerPlacement& placement : all)
    for (auto& replicas : placement) {
      std::ranges::sort(replicas, {}, &Replica::rank);
      for (Replica& r : replicas) r.share = 1.0f / static_cast<float>(replicas.size());
    }
  return all;
}

/// A placement whose ranks are renamed, among those with equal slots and speed, so that many replicas are where `now`
/// has them: pairs of an old and a new name in order of what they have in common.
LayerPlacement renamed(const LayerPlacement& placement, const LayerPlacement& now, const ExpertRanks& ranks) {
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
  std::vector<Pair> pairs;
  for (std::size_t from = 0; from < n; ++from)
    for (std::size_t to = 0; to < n; ++to)
      if (ranks.slots[from] == ranks.slots[to] && ranks.speed[from] == ranks.speed[to])
        pairs.push_back({common[from][to], from, to});
  std::ranges::stable_sort(pairs, std::greater{}, &Pair::common);
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

}  // namespace

Rebalanced rebalance(const LayerPlacement& now, std::span<const double> loads, std::span<const double> speed,
                     double slack) {
  ExpertRanks ranks;
  ranks.slots.assign(speed.size(), 0);
  ranks.speed.assign(speed.begin(), speed.end());
  ranks.node.assign(speed.size(), 0);
  for (const auto& replicas : now)
    for (const Replica& r : replicas) ++ranks.slots.at(static_cast<std::size_t>(r.rank));
  const double mean =
      std::accumulate(loads.begin(), loads.end(), 0.0) / std::accumulate(speed.begin(), speed.end(), 0.0);
  const auto largest = [&](const LayerPlacement& placement) {
    const auto sums = rank_loads(placement, loads, ranks);
    return *std::ranges::max_element(sums);
  };
  Rebalanced result{.placement = now};
  if (!(mean > 0)) return result;
  result.before = result.after = largest(now) / mean;

  const double aim = load_bound(loads, ranks, 1) * slack;
  if (largest(now) <= aim) return result;
  Balance balance(loads, ranks.slots, speed);
  balance.start_with(now);
  balance.improve(aim);
  LayerPlacement best = balance.placement();
  if (largest(best) > aim) {
    const LayerPlacement fresh = place_experts(loads, ranks, 1);
    if (largest(fresh) * stuck < largest(best)) best = renamed(fresh, now, ranks);
  }
  const double good = std::max(aim, largest(best)) * (1 + 1e-6);  // shares are floats
  for (bool found = true; found;) {
    found = false;
    for (const LayerPlacement& undone : with_one_undone(now, best)) {
      Balance trial(loads, ranks.slots, speed);
      trial.start_with(undone);
      LayerPlacement candidate = trial.placement();
      if (largest(candidate) > good || moved_replicas(now, candidate) >= moved_replicas(now, best)) continue;
      best = std::move(candidate);
      found = true;
      break;
    }
  }
  const double after = largest(best) / mean;
  if (after >= result.before) return result;
  result.after = after;
  result.moves = moved_replicas(now, best);
  result.placement = std::move(best);
  return result;
}

}  // namespace shoal
