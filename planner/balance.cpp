#include "planner/balance.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

#include "base/error.h"
#include "base/index.h"

namespace shoal {
namespace {

constexpr int most_exchanges = 2000;  // of one layer; a few hundred are usual
constexpr int most_gifts = 20;        // tried with copies of everything, so they are dear

}  // namespace

ReplicaCounts count_replicas(std::span<const double> loads, int slots, int most) {
  const auto needed = [&](double load, double level) {
    if (load <= 0) return 1.0;
    return std::max(1.0, std::ceil(load / level * (1 - 1e-12)));
  };
  const auto fits = [&](double level) {
    double sum = 0;
    for (const double load : loads) {
      const double n = needed(load, level);
      if (n > most) return false;
      sum += n;
    }
    return sum <= slots;
  };
  double high = std::max(1e-300, *std::max_element(loads.begin(), loads.end())), low = 0;
  for (int i = 0; i < 60 && high - low > high * 1e-12; ++i) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  ReplicaCounts result{high, {}};
  int used = 0;
  std::priority_queue<std::pair<double, std::size_t>> parts;
  for (std::size_t e = 0; e < loads.size(); ++e) {
    const int n = static_cast<int>(needed(loads[e], high));
    result.counts.push_back(n);
    used += n;
    parts.emplace(loads[e] / n, e);
  }
  while (used < slots && !parts.empty()) {
    const std::size_t e = parts.top().second;
    parts.pop();
    if (result.counts[e] >= most) continue;
    ++used;
    parts.emplace(loads[e] / ++result.counts[e], e);
  }
  return result;
}

bool equal_ranks(std::span<const int> slots, std::span<const double> speed) {
  return std::ranges::all_of(slots, [&](int s) { return s == slots[0]; }) &&
         std::ranges::all_of(speed, [&](double s) { return s == speed[0]; });
}

Balance::Balance(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed)
    : loads_(loads), slots_(slots), speed_(speed), held_(slots.size()), ranks_of_(loads.size()), load_(slots.size()) {}

std::size_t Balance::most_loaded() const {
  std::size_t hot = 0;
  for (std::size_t r = 1; r < load_.size(); ++r)
    if (level_of(r) > level_of(hot)) hot = r;
  return hot;
}

double Balance::largest() const { return level_of(most_loaded()); }

bool Balance::holds(std::size_t rank, int expert) const {
  const auto& ranks = ranks_of_[at(expert)];
  return std::find(ranks.begin(), ranks.end(), static_cast<int>(rank)) != ranks.end();
}

void Balance::hold(std::size_t rank, int expert, double load) {
  held_[rank].push_back({expert, load});
  ranks_of_[at(expert)].push_back(static_cast<int>(rank));
  load_[rank] += load;
}

/// The rank with `room` for a replica of `expert` whose level with it is lowest; as many as there are ranks if none
/// has.
std::size_t Balance::least_loaded(int expert, double load, std::span<const int> room) const {
  std::size_t best = held_.size();
  for (std::size_t r = 0; r < held_.size(); ++r) {
    if (static_cast<int>(held_[r].size()) >= room[r]) continue;
    if (best < held_.size() && (load_[r] + load) / speed_[r] >= (load_[best] + load) / speed_[best]) continue;
    if (!holds(r, expert)) best = r;
  }
  return best;
}

void Balance::place_from_scratch() {
  const int slots = std::accumulate(slots_.begin(), slots_.end(), 0);
  const auto usable = static_cast<int>(std::count_if(slots_.begin(), slots_.end(), [](int s) { return s > 0; }));
  const ReplicaCounts counts = count_replicas(loads_, slots, usable);
  std::vector<std::pair<double, int>> parts;
  for (std::size_t e = 0; e < loads_.size(); ++e)
    for (int i = 0; i < counts.counts[e]; ++i) parts.emplace_back(loads_[e] / counts.counts[e], static_cast<int>(e));
  std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [load, expert] : parts) {
    const std::size_t best = least_loaded(expert, load, slots_);
    if (best < held_.size()) {
      hold(best, expert, load);
    } else if (ranks_of_[at(expert)].empty()) {
      fail("{} experts do not fit into {} slots of {} ranks", loads_.size(), slots, held_.size());
    }  // a further replica that no rank has room for: the expert has fewer
  }
  even_out_all(3);
  grant_spare_slots();
}

void Balance::start_with(const LayerPlacement& placement) {
  for (std::size_t e = 0; e < placement.size(); ++e)
    for (const Replica& replica : placement[e])
      hold(at(replica.rank), static_cast<int>(e), loads_[e] * static_cast<double>(replica.share));
  for (std::size_t r = 0; r < held_.size(); ++r)
    if (static_cast<int>(held_[r].size()) > slots_[r])
      fail("rank {} holds {} experts of a layer, more than its {} slots", r, held_[r].size(), slots_[r]);
  even_out_all(8);
}

/// Splits an expert's load over its replicas so that the ranks' levels, as far as it can change them, are equal: water
/// poured onto what the ranks carry besides.
void Balance::even_out(int expert) {
  const auto& ranks = ranks_of_[at(expert)];
  if (ranks.size() < 2) return;
  std::vector<Ground>& ground = ground_;
  ground.clear();
  for (const int r : ranks) {
    auto& held = held_[at(r)];
    Held& mine = *std::find_if(held.begin(), held.end(), [&](const Held& h) { return h.expert == expert; });
    load_[at(r)] -= mine.load;
    ground.push_back({level_of(at(r)), speed_[at(r)], &mine, at(r)});
  }
  std::sort(ground.begin(), ground.end(), [](const Ground& a, const Ground& b) { return a.level < b.level; });
  double water = loads_[at(expert)], width = 0, level = ground[0].level;
  for (std::size_t i = 0; i < ground.size(); ++i) {
    width += ground[i].speed;
    const double room = i + 1 < ground.size() ? (ground[i + 1].level - level) * width : water;
    if (room >= water) {
      level += water / width;
      break;
    }
    water -= room;
    level = ground[i + 1].level;
  }
  for (const Ground& g : ground) {
    g.held->load = std::max(0.0, (level - g.level) * g.speed);
    load_[g.rank] += g.held->load;
  }
}

void Balance::even_out_all(int passes) {
  for (int pass = 0; pass < passes; ++pass)
    for (std::size_t e = 0; e < ranks_of_.size(); ++e) even_out(static_cast<int>(e));
  recompute_loads();
}

/// Sums anew, so that thousands of small changes leave no error.
void Balance::recompute_loads() {
  for (std::size_t r = 0; r < held_.size(); ++r)
    load_[r] =
        std::accumulate(held_[r].begin(), held_[r].end(), 0.0, [](double s, const Held& h) { return s + h.load; });
}

/// Slots that stayed empty take a further replica of the largest load on the most loaded rank.
void Balance::grant_spare_slots() {
  for (std::size_t r = 0; r < held_.size(); ++r) {
    while (static_cast<int>(held_[r].size()) < slots_[r]) {
      const std::size_t hot = most_loaded();
      int best = -1;
      double most = 0;
      for (const Held& h : held_[hot])
        if (h.load > most && !holds(r, h.expert)) best = h.expert, most = h.load;
      if (best < 0) break;
      hold(r, best, 0);
      even_out(best);
    }
  }
}

/// The exchange of one replica of `hot` with one of another rank that lowers the larger of the two loads most.
bool Balance::swap_from(std::size_t hot) {
  Swap best{level_of(hot) * (1 - 1e-9), -1, 0, 0};
  for (std::size_t r = 0; r < held_.size(); ++r) {
    if (r == hot || level_of(r) >= best.level) continue;
    for (std::size_t i = 0; i < held_[hot].size(); ++i) {
      const Held& mine = held_[hot][i];
      for (std::size_t j = 0; j < held_[r].size(); ++j) {
        const Held& its = held_[r][j];
        const double change = mine.load - its.load;
        if (change <= 0) continue;
        const double level = std::max((load_[hot] - change) / speed_[hot], (load_[r] + change) / speed_[r]);
        if (level < best.level && !holds(r, mine.expert) && !holds(hot, its.expert))
          best = {level, static_cast<int>(r), i, j};
      }
      // A free slot takes the replica itself.
      if (static_cast<int>(held_[r].size()) < slots_[r]) {
        const double level = std::max((load_[hot] - mine.load) / speed_[hot], (load_[r] + mine.load) / speed_[r]);
        if (level < best.level && !holds(r, mine.expert)) best = {level, static_cast<int>(r), i, held_[r].size()};
      }
    }
  }
  if (best.other < 0) return false;
  const auto other = at(best.other);
  const auto rename = [&](int expert, std::size_t from, std::size_t to) {
    auto& ranks = ranks_of_[at(expert)];
    *std::find(ranks.begin(), ranks.end(), static_cast<int>(from)) = static_cast<int>(to);
  };
  const Held mine = held_[hot][best.mine];
  rename(mine.expert, hot, other);
  load_[hot] -= mine.load;
  load_[other] += mine.load;
  if (best.its == held_[other].size()) {
    held_[other].push_back(mine);
    held_[hot].erase(held_[hot].begin() + static_cast<std::ptrdiff_t>(best.mine));
    even_out(mine.expert);
    return true;
  }
  const Held its = held_[other][best.its];
  rename(its.expert, other, hot);
  load_[other] -= its.load;
  load_[hot] += its.load;
  std::swap(held_[hot][best.mine], held_[other][best.its]);
  even_out(mine.expert);
  even_out(its.expert);
  return true;
}

/// Takes a replica from an expert that can spare it and gives its slot to the largest expert of `hot` that is not yet
/// there. Undone where the largest load does not fall.
bool Balance::give_replica_from(std::size_t hot) {
  const double before = level_of(hot);
  std::vector<Held> mine = held_[hot];
  std::sort(mine.begin(), mine.end(), [](const Held& a, const Held& b) { return a.load > b.load; });
  if (mine.size() > 3) mine.resize(3);
  struct Offer {
    double level;
    std::size_t rank;
    int expert;
  };
  std::vector<Offer> offers;
  for (std::size_t r = 0; r < held_.size(); ++r) {
    if (r == hot) continue;
    for (const Held& h : held_[r])
      if (ranks_of_[at(h.expert)].size() > 1) offers.push_back({(load_[r] - h.load) / speed_[r] + h.load, r, h.expert});
  }
  std::sort(offers.begin(), offers.end(), [](const Offer& a, const Offer& b) { return a.level < b.level; });
  if (offers.size() > 8) offers.resize(8);
  for (const Held& wanted : mine) {
    for (const Offer& offer : offers) {
      if (wanted.expert == offer.expert || holds(offer.rank, wanted.expert)) continue;
      const auto held = held_;
      const auto ranks_of = ranks_of_;
      const auto load = load_;
      auto& there = held_[offer.rank];
      const auto given =
          std::find_if(there.begin(), there.end(), [&](const Held& h) { return h.expert == offer.expert; });
      load_[offer.rank] -= given->load;
      there.erase(given);
      auto& ranks = ranks_of_[at(offer.expert)];
      ranks.erase(std::find(ranks.begin(), ranks.end(), static_cast<int>(offer.rank)));
      if (ranks.size() == 1) {  // the only one left takes all
        auto& last = held_[at(ranks[0])];
        Held& h = *std::find_if(last.begin(), last.end(), [&](const Held& x) { return x.expert == offer.expert; });
        load_[at(ranks[0])] += loads_[at(offer.expert)] - h.load;
        h.load = loads_[at(offer.expert)];
      } else {
        even_out(offer.expert);
      }
      hold(offer.rank, wanted.expert, 0);
      even_out(wanted.expert);
      even_out(offer.expert);
      if (largest() < before * (1 - 1e-9)) return true;
      held_ = held;
      ranks_of_ = ranks_of;
      load_ = load;
    }
  }
  return false;
}

void Balance::improve(double aim) {
  int gifts = 0;
  for (int i = 0; i < most_exchanges; ++i) {
    const std::size_t hot = most_loaded();
    if (level_of(hot) <= aim) return;
    if (swap_from(hot)) continue;
    const double before = level_of(hot);
    even_out_all(4);
    if (largest() < before * (1 - 1e-6)) continue;
    if (++gifts > most_gifts || !give_replica_from(most_loaded())) return;
  }
}

LayerPlacement Balance::placement() const {
  LayerPlacement placement(loads_.size());
  for (std::size_t r = 0; r < held_.size(); ++r)
    for (const Held& h : held_[r]) {
      const double whole = loads_[at(h.expert)];
      const auto n = static_cast<double>(ranks_of_[at(h.expert)].size());
      placement[at(h.expert)].push_back(
          {static_cast<std::int32_t>(r), static_cast<float>(whole > 0 ? h.load / whole : 1 / n)});
    }
  for (auto& replicas : placement) {
    // Rounded to floats, shares still add up to one: the largest takes the rest.
    float sum = 0;
    for (const Replica& x : replicas) sum += x.share;
    std::max_element(replicas.begin(), replicas.end(), [](const Replica& a, const Replica& b) {
      return a.share < b.share;
    })->share += 1 - sum;
  }
  return placement;
}

}  // namespace shoal
