#pragma once
#include <vector>

namespace shoal {

/// How experts that are too large for a rank are cut where ranks are equal, each with a few slots, and few slots are
/// spare. An expert that is not split comes whole with its load wherever it is, so what a heavy expert may put onto a
/// rank is less than the rank's level by what its neighbours there weigh; and a slot whose content weighs nothing is a
/// spare one. Counted at a level T:
/// - a replica whose neighbours are all whole experts stands alone and carries at most `beside` = T less the smallest
///   of these;
/// - on other ranks two or more slots hold replicas of split experts, heavy experts, or nothing; what lies in all of
///   these is at most T less the smallest whole experts in the rank's other slots, and the fewer of them, the more room
///   a slot has;
/// - all replicas beyond one an expert, and all empty slots, are the spare slots.
/// So an expert above `beside` has q replicas that stand alone and m that share a rank, for q + m - 1 spare slots, and
/// what it puts into the m has to find room in these; a spare slot spent otherwise makes room as well, most where it
/// lets a small expert have two replicas of which one carries all. What room is missing at least for each number of
/// spare slots follows expert by expert.
/// Room is not all: of what shares a rank, a piece larger than x (half of T at least) needs a piece smaller than T - x
/// beside it, and no two large ones the same. So pieces are counted as well, the large ones less the small ones.
class SpareSlots {
 public:
  /// `ascending`: loads of the experts. `slots`: of each rank; `spare`: of all ranks, beyond one an expert.
  SpareSlots(std::vector<double> ascending, int slots, int spare);

  /// Whether they are few enough, as are those of a rank, to count pieces too, which takes their square in time.
  bool few() const { return spare_ > 0 && spare_ <= 64 && slots_ <= 4; }
  /// Whether no placement has a largest load of `level`. `large`: x as a part of the level; 0: pieces are not counted.
  bool excludes(double level, double large = 0) const;

 private:
  const std::vector<double> loads_;
  const int slots_;
  const int spare_;
  std::vector<double> smallest_{0};  // sums of the smallest 0, 1, 2 ...
};

}  // namespace shoal
