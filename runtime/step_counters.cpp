#include "runtime/step_counters.h"

#include <algorithm>

namespace shoal {
namespace {

std::vector<std::vector<std::int32_t>> layers_with_experts(const Placement& placement) {
  auto layers = placement.rank_of_expert;
  std::erase_if(layers, [](const auto& layer) { return layer.empty(); });
  return layers;
}

}  // namespace

StepCounters::StepCounters(const Placement& placement) : rank_of_expert_(layers_with_experts(placement)) {
  totals_.ranks.resize(static_cast<std::size_t>(placement.ranks));
  for (const auto& layer : rank_of_expert_) totals_.expert_tokens.emplace_back(layer.size());
}

void StepCounters::add(const StepResult& result, int rank) {
  const std::lock_guard lock(mutex_);
  totals_.steps = std::max(totals_.steps, result.step);
  Rank& own = totals_.ranks.at(static_cast<std::size_t>(rank));
  own.compute_s += result.compute_us * 1e-6;
  own.exchange_s += result.exchange_us * 1e-6;
  if (result.step != latest_step_) read_.assign(result.expert_tokens.size(), false);
  latest_step_ = result.step;
  read_.resize(std::max(read_.size(), result.expert_tokens.size()));
  std::size_t i = 0;
  for (std::size_t layer = 0; layer < rank_of_expert_.size(); ++layer) {
    const auto& ranks = rank_of_expert_[layer];
    if (i + ranks.size() > result.expert_tokens.size()) return;
    for (std::size_t expert = 0; expert < ranks.size(); ++expert, ++i) {
      if (result.expert_tokens[i] > 0 && !read_[i]) {
        read_[i] = true;
        ++totals_.experts_read;
      }
      totals_.expert_tokens[layer][expert] += result.expert_tokens[i];
      totals_.ranks[static_cast<std::size_t>(ranks[expert])].expert_tokens += result.expert_tokens[i];
    }
  }
}

StepCounters::Totals StepCounters::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
