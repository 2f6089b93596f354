#include "planner/expert_trees.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/index.h"

namespace shoal {
namespace {

/// Changes for the worse that are accepted, in squares of a part of the level: first, and last.
constexpr double first_heat = 1e-5, last_heat = 1e-9;

}  // namespace

ExpertTrees::ExpertTrees(std::span<const double> loads, const LayerPlacement& placement, int ranks)
    : loads_(loads), tree_of_(loads.size()), trees_(loads.size()) {
  std::iota(tree_of_.begin(), tree_of_.end(), std::size_t{0});
  for (std::size_t e = 0; e < loads.size(); ++e) trees_[e] = {{static_cast<int>(e)}, loads[e]};
  std::vector<int> held(at(ranks), -1);  // one of the experts of each rank
  for (std::size_t e = 0; e < loads.size(); ++e)
    for (const Replica& r : placement[e]) {
      int& other = held[at(r.rank)];
      if (other < 0) other = static_cast<int>(e);
      join(tree_of_[at(other)], tree_of_[e]);
    }

  number_trees();
  std::vector<int> spare;  // ranks beyond those of a tree
  for (const Tree& t : trees_) spare.push_back(1 - static_cast<int>(t.experts.size()));
  for (const int e : held)
    if (e >= 0) ++spare[tree_of_[at(e)]];
  for (std::size_t t = 0; t < trees_.size(); ++t)
    for (; spare[t] > 0; --spare[t]) {  // joined with the most loaded tree it is one
      std::size_t other = trees_.size();
      for (std::size_t o = 0; o < trees_.size(); ++o)
        if (o != t && spare[o] == 0 && trees_[o].experts.size() > 1 &&
            (other == trees_.size() || trees_[o].level() > trees_[other].level()))
          other = o;
      if (other == trees_.size()) fail("{} experts make no trees on {} ranks", loads.size(), ranks);
      join(t, other);
      spare[other] = -1;
    }
  number_trees();
}

/// Without the empty ones.
void ExpertTrees::number_trees() {
  std::erase_if(trees_, [](const Tree& t) { return t.experts.empty(); });
  for (std::size_t t = 0; t < trees_.size(); ++t)
    for (const int e : trees_[t].experts) tree_of_[at(e)] = t;
}

void ExpertTrees::join(std::size_t into, std::size_t other) {
  if (into == other) return;
  Tree &larger = trees_[into], &emptied = trees_[other];
  for (const int e : emptied.experts) tree_of_[at(e)] = into;
  larger.experts.insert(larger.experts.end(), emptied.experts.begin(), emptied.experts.end());
  larger.load += emptied.load;
  emptied = {};
}

double ExpertTrees::largest() const {
  double most = 0;
  for (const Tree& t : trees_) most = std::max(most, t.level());
  return most;
}

void ExpertTrees::search(double level, int steps) {
  if (trees_.size() < 2) return;
  std::mt19937 random(1);
  const auto draw = [&](std::size_t n) { return random() % n; };
  const auto excess = [&](double load, std::size_t experts) {
    const double x = std::max(0.0, load / static_cast<double>(experts - 1) / level - 1);
    return x * x;
  };
  double excesses = 0;
  for (const Tree& t : trees_) excesses += excess(t.load, t.experts.size());

  double heat = first_heat;
  const double cooling = std::pow(last_heat / first_heat, 1.0 / steps);
  for (int step = 0; step < steps && excesses > 1e-12; ++step, heat *= cooling) {
    // One expert of `here` for none, one (most often) or two of `there`.
    const std::size_t kind = draw(4), taken = kind < 2 ? 2 * kind : 1;
    const auto given = static_cast<int>(draw(loads_.size()));
    const std::size_t from = tree_of_[at(given)];
    const std::size_t to = taken == 0 ? draw(trees_.size()) : tree_of_[draw(loads_.size())];
    Tree &here = trees_[from], &there = trees_[to];
    const std::size_t here_after = here.experts.size() - 1 + taken, there_after = there.experts.size() + 1 - taken;
    if (from == to || here_after < 2 || there_after < 2) continue;
    double change = -loads_[at(given)];  // of here.load
    for (std::size_t i = 0; i < taken; ++i) {
      std::swap(there.experts[i], there.experts[i + draw(there.experts.size() - i)]);
      change += loads_[at(there.experts[i])];
    }
    const double worse = excess(here.load + change, here_after) + excess(there.load - change, there_after) -
                         excess(here.load, here.experts.size()) - excess(there.load, there.experts.size());
    if (worse > heat) continue;
    excesses += worse;
    here.load += change;
    there.load -= change;
    std::erase(here.experts, given);
    const auto end = there.experts.begin() + static_cast<std::ptrdiff_t>(taken);
    for (auto e = there.experts.begin(); e != end; ++e) tree_of_[at(*e)] = from;
    here.experts.insert(here.experts.end(), there.experts.begin(), end);
    there.experts.erase(there.experts.begin(), end);
    there.experts.push_back(given);
    tree_of_[at(given)] = to;
  }
  for (Tree& t : trees_) {  // anew, so that thousands of changes leave no error
    t.load = 0;
    for (const int e : t.experts) t.load += loads_[at(e)];
  }
}

LayerPlacement ExpertTrees::placement() const {
  LayerPlacement placement(loads_.size());
  std::int32_t rank = 0;
  const auto hold = [&](int expert, double load) {
    const double whole = loads_[at(expert)];
    auto& replicas = placement[at(expert)];
    replicas.push_back({rank, whole > 0 ? static_cast<float>(load / whole) : replicas.empty() ? 1.0f : 0.0f});
  };
  for (const Tree& tree : trees_) {
    struct Left {
      int expert;
      double load;
    };
    std::vector<Left> left;
    for (const int e : tree.experts) left.push_back({e, loads_[at(e)]});
    std::ranges::sort(left, {}, &Left::load);
    const double level = tree.level();
    for (std::size_t lightest = 0; lightest + 1 < left.size(); ++lightest, ++rank) {
      Left& heaviest = left.back();
      const bool last = lightest + 2 == left.size();  // and takes what rounding leaves
      const double part = last ? heaviest.load : std::clamp(level - left[lightest].load, 0.0, heaviest.load);
      hold(left[lightest].expert, left[lightest].load);
      hold(heaviest.expert, part);
      heaviest.load -= part;
      for (std::size_t i = left.size() - 1; i > lightest + 1 && left[i].load < left[i - 1].load; --i)
        std::swap(left[i], left[i - 1]);
    }
  }
  return placement;
}

}  // namespace shoal
