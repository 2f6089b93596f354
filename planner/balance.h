#pragma once
#include <span>
#include <vector>

#include "planner/expert_placement.h"

namespace shoal {

/// The smallest level T such that experts cut into ceil(load / T) equal parts have at most `slots` parts altogether;
/// and those counts, with the parts that are left given to where they lower the largest part most.
struct ReplicaCounts {
  double level = 0;
  std::vector<int> counts;  // [experts]
};
/// `most`: replicas that one expert may have (no two share a rank).
ReplicaCounts count_replicas(std::span<const double> loads, int slots, int most);

/// Whether all ranks have as many slots and the same speed.
bool equal_ranks(std::span<const int> slots, std::span<const double> speed);

/// Where each expert's replicas are and what they carry, without regard to groups or nodes; improved in place.
class Balance {
 public:
  Balance(std::span<const double> loads, std::span<const int> slots, std::span<const double> speed);

  /// All experts cut into parts of nearly one size, largest first onto the least loaded rank.
  void place_from_scratch();
  /// Only the `split` largest experts are cut. The others are placed first, so that each rank with room for parts stays
  /// below the others by what its parts will weigh; then the large ones, smallest first, fill the ranks up to `level`.
  /// False where slots or level do not suffice.
  bool place_filling(int split, double level);
  /// For equal ranks and few spare slots, which is where it matters how parts are grouped: parts of large experts stand
  /// alone among whole ones, on ranks that they fill up, but for the last part of each; two such ends (or a large
  /// expert left whole and an end) share a rank. False where slots or level do not suffice.
  bool place_paired(double level);
  void start_with(const LayerPlacement& placement);
  /// Exchanges until the largest load is at most `aim` or no exchange helps.
  void improve(double aim);

  double largest() const;
  LayerPlacement placement() const;

 private:
  struct Held {
    int expert;
    double load;
  };
  struct Ground {
    double level, speed;
    Held* held;
    std::size_t rank;
  };
  struct Swap {
    double level;  // the larger of both ranks' loads after it
    int other;
    std::size_t mine, its;
  };

  double level_of(std::size_t rank) const { return load_[rank] / speed_[rank]; }
  std::size_t most_loaded() const;
  std::size_t least_loaded(int expert, double load, std::span<const int> room) const;
  bool holds(std::size_t rank, int expert) const;
  void hold(std::size_t rank, int expert, double load);
  void even_out(int expert);
  void even_out_all(int passes);
  void grant_spare_slots();
  bool swap_from(std::size_t hot);
  bool give_replica_from(std::size_t hot);
  void recompute_loads();

  std::span<const double> loads_;
  std::span<const int> slots_;
  std::span<const double> speed_;
  std::vector<std::vector<Held>> held_;     // [ranks]
  std::vector<std::vector<int>> ranks_of_;  // [experts]
  std::vector<double> load_;                // [ranks]
  std::vector<Ground> ground_;              // of even_out(), which is called too often to allocate
};

}  // namespace shoal
