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
/// stay. Last, exchanges are taken back that turned out not to be needed, as many as a bounded number of trials finds,
/// so that a layer of 256 experts on 320 ranks takes some tenths of a second at most.
/// Where `now` has each of `n_group` routing groups on one node, so has the result: nodes are evened out one by one,
/// and groups change places where that alone helps. `loads` [n_routed_experts]; of `ranks`, speed and node count.
Rebalanced rebalance(const LayerPlacement& now, std::span<const double> loads, const ExpertRanks& ranks,
                     int n_group = 1, double slack = 1.02);

}  // namespace shoal
