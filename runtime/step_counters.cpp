#include "runtime/step_counters.h"

#include <algorithm>
#include <numeric>

namespace shoal {

StepCounters::StepCounters(const Placement& placement) {
  totals_.ranks.resize(static_cast<std::size_t>(placement.ranks));
  for (const LayerPlacement& layer : placement.experts)
    if (!layer.empty()) totals_.expert_tokens.emplace_back(layer.size());
}

void StepCounters::add(const StepResult& result, int rank) {
  const std::lock_guard lock(mutex_);
  totals_.steps = std::max(totals_.steps, result.step);
  Rank& own = totals_.ranks.at(static_cast<std::size_t>(rank));
  own.compute_s += result.compute_us * 1e-6;
  own.exchange_s += result.exchange_us * 1e-6;
  own.expert_tokens += std::accumulate(result.expert_work.begin(), result.expert_work.end(), std::uint64_t{0});
  auto tokens = result.expert_tokens.begin();
  for (auto& layer : totals_.expert_tokens)
    for (auto& expert : layer)
      if (tokens != result.expert_tokens.end()) expert += *tokens++;
}

StepCounters::Totals StepCounters::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
