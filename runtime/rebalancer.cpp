#include "runtime/rebalancer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "planner/rebalance.h"

namespace shoal {
namespace {

/// Tokens that a rank must have had on average for a look to be worth it.
constexpr double kEnough = 400;
/// A layer is left alone where moves would lower its largest load by less, or by no more than chance makes of it: a
/// rank that gets n tokens gets some sqrt(n) more or fewer.
double worthwhile(double tokens_a_rank) { return std::max(0.05, 4 / std::sqrt(tokens_a_rank)); }

}  // namespace

Rebalancer::Rebalancer(const Placement& placement, int every, int ranks_per_node, int n_group)
    : every_(every), ranks_per_node_(ranks_per_node), n_group_(n_group) {
  begin_anew(placement);
}

void Rebalancer::begin_anew(const Placement& placement) {
  ranks_ = ExpertRanks::equal(placement.ranks, ranks_per_node_, 0, 0);
  layers_.clear();
  steps_ = 0;
  for (std::size_t i = 0; i < placement.experts.size(); ++i) {
    const LayerPlacement& experts = placement.experts[i];
    if (experts.empty()) continue;
    if (placement.ranks > 1) layers_.push_back({static_cast<int>(i), experts, std::vector<double>(experts.size()), {}});
  }
  next_layer_ = layers_.size();
}

void Rebalancer::update(Placement& placement) const {
  for (const Layer& layer : layers_) placement.experts[static_cast<std::size_t>(layer.index)] = layer.placement;
}

void Rebalancer::add(const StepResult& result) {
  std::size_t first = 0;
  for (Layer& layer : layers_) {
    const std::size_t n = std::min(layer.counted.size(), result.expert_tokens.size() - first);
    for (std::size_t e = 0; e < n; ++e) layer.counted[e] += result.expert_tokens[first + e];
    first += n;
  }
}

std::optional<ExpertLayer> Rebalancer::next() {
  ++steps_;
  if (next_layer_ == layers_.size()) {
    if (steps_ < every_) return std::nullopt;
    steps_ = 0;
    next_layer_ = 0;
    worst_ = 1;
    for (Layer& layer : layers_) {
      layer.looked_at.assign(layer.counted.size(), 0);
      std::swap(layer.looked_at, layer.counted);
    }
  }
  if (layers_.empty()) return std::nullopt;
  auto move = look_at(layers_[next_layer_++]);
  if (next_layer_ == layers_.size()) {
    const std::lock_guard lock(mutex_);
    totals_.imbalance = worst_;
  }
  return move;
}

std::optional<ExpertLayer> Rebalancer::look_at(Layer& layer) {
  const double tokens = std::accumulate(layer.looked_at.begin(), layer.looked_at.end(), 0.0);
  if (tokens < kEnough * ranks_.size()) return std::nullopt;
  Rebalanced found = rebalance(layer.placement, layer.looked_at, ranks_, n_group_);
  worst_ = std::max(worst_, found.before);
  if (found.after > found.before * (1 - worthwhile(tokens / ranks_.size()))) return std::nullopt;
  layer.placement = std::move(found.placement);
  {
    const std::lock_guard lock(mutex_);
    totals_.moves += static_cast<std::uint64_t>(found.moves);
  }
  if (told_) told_({layer.index, found.moves, found.before, found.after});
  return ExpertLayer{layer.index, layer.placement};
}

Rebalancer::Totals Rebalancer::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
