#pragma once
#include <span>

#include "planner/expert_placement.h"

namespace shoal {

/// What moving experts brings.
struct Rebalanced {
  LayerPlacement placement;
  int moves = 0;                 // replicas whose weights go to another rank
  double before = 1, after = 1;  // largest rank load over the mean
};

/// Evens out the ranks' loads of a running layer with few moves of weights: no rank holds more replicas afterwards
/// than it did before. First the shares of the replicas change, which moves nothing; then replicas are exchanged, the
/// one that helps most first, until the largest load is within `slack` of a lower bound or no exchange helps. Where
/// that ends far above what a new placement has, it is the new one, ranks renamed so that as many replicas as can be
/// stay. Last, every exchange is taken back that turned out not to be needed. Routing groups are not kept on their
/// nodes. `loads` [n_routed_experts]; `speed` [ranks].
Rebalanced rebalance(const LayerPlacement& now, std::span<const double> loads, std::span<const double> speed,
                     double slack = 1.02);

}  // namespace shoal
