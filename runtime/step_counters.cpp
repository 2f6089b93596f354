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
  if (result.step != latest_step_) read_.assign(result.expert_tokens.size(), false);
  latest_step_ = result.step;
  read_.resize(std::max(read_.size(), result.expert_tokens.size()));
  std::size_t i = 0;
  for (auto& layer : totals_.expert_tokens)
    for (auto& expert : layer) {
      if (i == result.expert_tokens.size()) return;
      if (result.expert_tokens[i] > 0 && !read_[i]) {
        read_[i] = true;
        ++totals_.experts_read;
      }
      expert += result.expert_tokens[i++];
    }
}

StepCounters::Totals StepCounters::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace shoal
