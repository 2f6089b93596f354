#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "planner/placement.h"
#include "runtime/step.h"

namespace shoal {

/// What the ranks report with every step, summed up for those who watch. Thread-safe.
class StepCounters {
 public:
  /// `placement` of the layers with experts that are loaded: without an MTP layer where none is.
  explicit StepCounters(const Placement& placement);
  void add(const StepResult& result, int rank);

  struct Rank {
    std::uint64_t expert_tokens = 0;  // rows that its experts, or its slices of all, computed, from all ranks
    double compute_s = 0, exchange_s = 0;
  };
  struct Totals {
    std::uint64_t steps = 0;
    std::uint64_t experts_read = 0;  // experts that computed anything, summed over layers and steps
    std::vector<Rank> ranks;
    std::vector<std::vector<std::uint64_t>> expert_tokens;  // [MoE layers][n_routed_experts]
  };
  Totals totals() const;

 private:
  mutable std::mutex mutex_;
  Totals totals_;
  std::uint64_t latest_step_ = 0;
  std::vector<std::uint8_t> read_;  // [MoE layers * n_routed_experts] in the latest step, by any rank's tokens
};

}  // namespace shoal
