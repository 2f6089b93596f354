#pragma once
#include <span>
#include <vector>

#include "planner/expert_placement.h"

namespace shoal {

/// How experts share equal ranks of two slots, of which there are fewer than experts. An expert is a point, and a rank
/// joins the two that it holds: E experts on R ranks make E - R trees at least. (Parts with as many ranks as experts or
/// more join trees without raising the largest load, and so might ranks that hold nothing: then there are E - R.) A
/// tree of k experts has k - 1 ranks, and its load can be spread evenly over them, whichever experts it has: the
/// lightest, which is below the level, lies whole on a rank, and the heaviest fills that up (the two are never below
/// the level), and so on with what is left. So a placement is a partition of the experts into E - R trees, and its
/// largest load is that of the tree with the largest load for each of its ranks.
class ExpertTrees {
 public:
  /// The trees of a placement on so many `ranks`, fewer than experts.
  ExpertTrees(std::span<const double> loads, const LayerPlacement& placement, int ranks);

  /// Load of each rank of the tree where it is largest.
  double largest() const;
  /// Moves and exchanges experts between trees, drawn at random (the same ones each time), until no tree is above
  /// `level`, or for `steps`. Becomes worse now and then to become better, the less so the longer it goes on.
  /// `level` above zero.
  void search(double level, int steps);

  /// Trees take the ranks in turn.
  LayerPlacement placement() const;

 private:
  struct Tree {
    std::vector<int> experts;
    double load = 0;
    double level() const { return load / static_cast<double>(experts.size() - 1); }
  };

  void join(std::size_t into, std::size_t other);
  void number_trees();

  std::span<const double> loads_;
  std::vector<std::size_t> tree_of_;  // [experts]
  std::vector<Tree> trees_;
};

}  // namespace shoal
