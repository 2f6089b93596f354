#pragma once
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "planner/placement.h"
#include "runtime/step.h"

namespace shoal {

/// Moves experts while a model serves: counts how many tokens each of them gets, and after every so many steps looks
/// for layers whose ranks carry unequal loads, to be evened out with few moves (planner/rebalance.h). One layer is
/// looked at between two steps, so that nobody waits for long.
class Rebalancer {
 public:
  /// What was found out about a layer and is about to be done.
  struct Change {
    int layer = 0;
    int moves = 0;                 // experts that go to another rank
    double before = 1, after = 1;  // the most loaded rank over the mean, of the tokens counted
  };
  struct Totals {
    std::uint64_t moves = 0;
    double imbalance = 1;  // most loaded rank over the mean, worst layer, in the last steps counted
  };

  /// `placement` of the layers with experts that are loaded: without an MTP layer where none is.
  /// `every`: steps between two looks. Routing groups (`n_group`) that the placement keeps on nodes stay on nodes.
  Rebalancer(const Placement& placement, int every, int ranks_per_node, int n_group);

  /// Called before each move, from the coordinator's thread. Set before the first step.
  void on_change(std::function<void(const Change&)> told) { told_ = std::move(told); }

  /// Every rank's answer to a step.
  void add(const StepResult& result);
  /// Once a step, before its answers: what is to be moved before the next one.
  std::optional<ExpertLayer> next();

  /// Puts where the experts are by now into `placement`, as it was given to the constructor.
  void update(Placement& placement) const;
  /// Ranks were lost: from now on the experts are placed like this. Called like next().
  void begin_anew(const Placement& placement);

  Totals totals() const;

 private:
  struct Layer {
    int index = 0;  // in the model
    LayerPlacement placement;
    std::vector<double> counted, looked_at;  // [n_routed_experts] tokens since the last look, and before it
  };
  std::optional<ExpertLayer> look_at(Layer& layer);

  const int every_, ranks_per_node_, n_group_;
  ExpertRanks ranks_;
  std::vector<Layer> layers_;
  int steps_ = 0;
  std::size_t next_layer_;  // to be looked at; layers_.size(): none
  double worst_ = 1;
  std::function<void(const Change&)> told_;
  mutable std::mutex mutex_;
  Totals totals_;
};

}  // namespace shoal
