#pragma once
#include <cstdint>
#include <vector>

#include "collectives/expert_map.h"

namespace shoal {

/// Where a token goes for one of its experts: a rank of an all-to-all, and what that one is asked for.
struct Destination {
  std::int32_t rank = -1, id = 0;  // rank -1: nowhere
};

/// How tokens get to the ranks that hold their experts: straight to each; or, where hosts have several ranks each, once
/// to every host, to the rank there that has this one's place, and on from that one to the others, so that a token and
/// its answer cross the network once for a host (as DeepSeek-V3 has it between GPUs: arXiv 2412.19437, section 3.2.2).
class Hops {
 public:
  /// ranks_per_host: as Communicator's, or 1 for straight ways.
  Hops(int ranks, int rank, int ranks_per_host) : ranks_(ranks), rank_(rank), per_host_(ranks_per_host) {}

  static constexpr int kLocalBits = 20;  // of an id of two hops: the expert's on its rank; above, the rank on its host

  bool two() const { return per_host_ > 1 && per_host_ < ranks_; }
  /// Ranks of a host whose answers to a token are added up on the way.
  int added_up() const { return two() ? per_host_ : 1; }
  /// The ranks of the first hop: all, or of each host one.
  std::vector<int> first() const;
  /// Those of the second, this host's.
  std::vector<int> second() const;

  /// Where a token's first hop goes for an expert, whose id goes along. -1: nowhere. Error where nobody holds it.
  Destination destination(std::int32_t expert, ExpertMap& map) const;
  /// Where the second goes, of what came with an id.
  static Destination forward(std::int32_t id) { return {id >> kLocalBits, id & ((1 << kLocalBits) - 1)}; }

 private:
  int ranks_, rank_, per_host_;
};

}  // namespace shoal
