#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

/// A copy of an expert, and the part of the expert's tokens that go to it.
struct Replica {
  std::int32_t rank = 0;
  float share = 1;
  bool operator==(const Replica&) const = default;
};

/// Where the experts of one layer live: [n_routed_experts], each with at least one replica, ranks ascending, no two on
/// the same rank, shares adding up to one.
using LayerPlacement = std::vector<std::vector<Replica>>;

/// What experts may be put on.
struct ExpertRanks {
  std::vector<int> slots;     // [ranks] replicas that a rank may hold in this layer
  std::vector<double> speed;  // [ranks] load it carries in the time that a rank of speed 1 carries load 1
  std::vector<int> node;      // [ranks] ascending from 0

  int size() const { return static_cast<int>(slots.size()); }
  /// Ranks of one speed, `ranks_per_node` of them on a node, with equal slots for every expert and `redundant` more at
  /// least; for exactly the experts, as equal as can be, where no more are wanted.
  static ExpertRanks equal(int ranks, int ranks_per_node, int experts, int redundant);
};

/// Loads of the ranks under a placement, each divided by the rank's speed: what a step waits for is the largest.
std::vector<double> rank_loads(const LayerPlacement& placement, std::span<const double> loads,
                               const ExpertRanks& ranks);

/// A number that no placement's largest rank load can be below: the mean, and the smallest level at which all experts'
/// whole numbers of replicas fit into the slots (each replica carries at most the level); with groups the same for the
/// best packing of groups into nodes. `thorough`: see pieces_bound() of flat_bound.h.
double load_bound(std::span<const double> loads, const ExpertRanks& ranks, int n_group, bool thorough = false);

/// Places one layer's experts with `loads` [n_routed_experts] (any unit) so that the largest rank load is small:
/// replica counts for the smallest feasible level, largest first onto the least loaded rank, then exchanges between the
/// most loaded rank and the others, with the replicas' shares evened out (the minimum of the sum of squared loads,
/// which also has the smallest maximum). Ranks of few slots are filled up to a level instead, the lowest that works,
/// and equal ones of two slots searched further (expert_trees.h). `n_group` > 1: the experts of a routing group, and
/// their replicas, stay on one node where there are at least as many groups as nodes and nodes are equal; else groups
/// do not matter. Error where the slots do not suffice.
LayerPlacement place_experts(std::span<const double> loads, const ExpertRanks& ranks, int n_group);

/// Replicas that `after` has on ranks where `before` has none of that expert: what has to be moved.
int moved_replicas(const LayerPlacement& before, const LayerPlacement& after);

}  // namespace shoal
