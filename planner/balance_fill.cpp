// Placements that fill ranks to a level that is given.
#include <algorithm>
#include <numeric>

#include "base/index.h"
#include "planner/balance.h"

namespace shoal {
namespace {

/// Experts, largest load first.
std::vector<std::size_t> descending(std::span<const double> loads) {
  std::vector<std::size_t> order(loads.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return loads[a] > loads[b]; });
  return order;
}

}  // namespace

bool Balance::place_filling(int split, double level) {
  const std::vector<std::size_t> order = descending(loads_);
  double large = 0;
  for (std::size_t i = 0; i < at(split); ++i) large += loads_[order[i]];

  // Slots for parts, dealt out to the ranks in turn.
  const int parts = std::accumulate(slots_.begin(), slots_.end(), 0) - (static_cast<int>(loads_.size()) - split);
  if (parts < split) return false;
  std::vector<int> whole_slots(slots_.begin(), slots_.end());
  for (int to_deal = parts; to_deal > 0;)
    for (std::size_t r = 0; r < slots_.size() && to_deal > 0; ++r)
      if (whole_slots[r] > 0) --whole_slots[r], --to_deal;
  for (std::size_t r = 0; r < load_.size(); ++r) load_[r] = large / parts * (slots_[r] - whole_slots[r]);
  for (std::size_t i = at(split); i < order.size(); ++i) {
    const auto expert = static_cast<int>(order[i]);
    const std::size_t rank = least_loaded(expert, loads_[order[i]], whole_slots);
    if (rank == held_.size()) return false;
    hold(rank, expert, loads_[order[i]]);
  }
  recompute_loads();

  for (std::size_t i = at(split); i-- > 0;) {
    const auto expert = static_cast<int>(order[i]);
    for (double rest = loads_[order[i]]; rest > level * 1e-9;) {
      // A rank that it fills whole, or, for its end, the tightest one; best one that keeps a slot for what comes next.
      std::size_t best = held_.size();
      double best_room = 0;
      bool best_ends = false, best_shared = false;
      for (std::size_t r = 0; r < held_.size(); ++r) {
        const int free = slots_[r] - static_cast<int>(held_[r].size());
        const double room = level * speed_[r] - load_[r];
        if (free <= 0 || room <= level * 1e-9) continue;
        const bool ends = room >= rest, shared = free > 1 || room <= rest * 1.02;
        const bool better = best == held_.size()    ? true
                            : ends != best_ends     ? ends
                            : !ends                 ? room > best_room
                            : shared != best_shared ? shared
                                                    : room < best_room;
        if (better && !holds(r, expert)) best = r, best_room = room, best_ends = ends, best_shared = shared;
      }
      if (best == held_.size()) return false;
      const double part = std::min(rest, best_room);
      hold(best, expert, part);
      rest -= part;
    }
    if (ranks_of_[order[i]].empty()) return false;
  }
  even_out_all(2);
  grant_spare_slots();
  return true;
}

bool Balance::place_paired(double level) {
  const auto ranks = std::ssize(slots_), experts = std::ssize(loads_), slots = std::ptrdiff_t{slots_[0]};
  const std::ptrdiff_t spare = ranks * slots - experts;
  if (!equal_ranks(slots_, speed_) || slots < 2 || spare < 1 || spare >= ranks) return false;
  level *= speed_[0];
  const std::vector<std::size_t> order = descending(loads_);
  const std::ptrdiff_t neighbours = std::min(spare * (slots - 1), experts);
  double small = 0;  // mean load of these
  for (std::ptrdiff_t i = 0; i < neighbours; ++i)
    small += loads_[order[at(experts - 1 - i)]] / static_cast<double>(neighbours);
  // Room of ranks where one slot or two are left by whole experts.
  const double beside = level - small * static_cast<double>(slots - 1), together = beside + small;
  if (beside <= 0) return false;

  struct Large {
    std::size_t expert;
    std::ptrdiff_t alone;  // parts with whole experts beside them
    double end;            // what shares a rank with another end
  };
  // Replicas beyond one are spare slots, and so is the slot beside an end that has no other.
  std::vector<Large> large;
  std::ptrdiff_t wanted = 0, ends = 0;
  for (std::ptrdiff_t i = 0; i < experts && loads_[order[at(i)]] > beside; ++i) {
    const double load = loads_[order[at(i)]];
    auto alone = static_cast<std::ptrdiff_t>(load / beside);
    double end = load - beside * static_cast<double>(alone);
    wanted += alone;
    if (end > together / 2) ++alone, end = 0;  // better alone too, and all of its parts smaller
    ends += end > 0;
    large.push_back({order[at(i)], alone, end});
  }
  // Where spare slots do not suffice, the shortest ends take in a part.
  std::ranges::stable_sort(
      large, [](const Large& a, const Large& b) { return (a.end > 0) != (b.end > 0) ? a.end > 0 : a.end < b.end; });
  for (Large& l : large) {
    if (wanted + ends % 2 <= spare) break;
    if (l.end <= 0 || l.alone == 0 || l.end + beside > together) return false;
    --l.alone;
    l.end += beside;
    --wanted;
  }
  const std::ptrdiff_t shared = (ends + 1) / 2;
  std::ptrdiff_t alone = 0;
  double of_ends = 0;
  for (const Large& l : large) alone += l.alone, of_ends += l.end;
  if (wanted + ends % 2 > spare || shared + alone > ranks) return false;

  // Whole experts, the largest first. Ranks that two ends share come first, then those with one part.
  std::vector<int> whole_slots(slots_.begin(), slots_.end());
  for (std::ptrdiff_t r = 0; r < shared; ++r) {
    whole_slots[at(r)] -= 2;
    load_[at(r)] = of_ends / static_cast<double>(shared);
  }
  std::size_t rank = at(shared);
  for (const Large& l : large)
    for (std::ptrdiff_t i = 0; i < l.alone; ++i, ++rank) {
      --whole_slots[rank];
      load_[rank] = (loads_[l.expert] - l.end) / static_cast<double>(l.alone);
    }
  for (std::size_t i = large.size(); i < order.size(); ++i) {
    const auto expert = static_cast<int>(order[i]);
    const std::size_t best = least_loaded(expert, loads_[order[i]], whole_slots);
    if (best == held_.size()) return false;
    hold(best, expert, loads_[order[i]]);
  }
  recompute_loads();

  rank = at(shared);
  for (Large& l : large) {
    const bool ends_elsewhere = l.end > 0;
    double rest = loads_[l.expert];
    for (std::ptrdiff_t i = 0; i < l.alone; ++i, ++rank) {
      const bool last = i + 1 == l.alone && !ends_elsewhere;
      const double part = last ? rest : std::clamp(level - load_[rank], 0.0, rest);
      hold(rank, static_cast<int>(l.expert), part);
      rest -= part;
    }
    l.end = ends_elsewhere ? rest : -1;
  }
  std::ranges::stable_sort(large, std::greater{}, &Large::end);
  for (std::ptrdiff_t i = 0; i < ends; ++i)  // the longest with the shortest
    hold(at(std::min(i, ends - 1 - i)), static_cast<int>(large[at(i)].expert), large[at(i)].end);
  even_out_all(2);
  grant_spare_slots();
  return true;
}

}  // namespace shoal
