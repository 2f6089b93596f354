#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace shoal {

/// A copy of an expert: where it is, its index in that rank's own list of experts, and the part of the expert's tokens
/// that go there.
struct ExpertReplica {
  std::int32_t rank = 0, local = 0;
  float share = 1;
};

/// Where each routed expert of one layer lives.
struct ExpertMap {
  std::vector<std::vector<ExpertReplica>> replicas;  // [n_routed_experts], shares of each adding up to one
  std::vector<std::uint32_t> turn;                   // [n_routed_experts] tokens that this rank has sent it

  explicit ExpertMap(std::vector<std::vector<ExpertReplica>> r = {}) : replicas(std::move(r)), turn(replicas.size()) {}

  /// Where the next token for `expert` goes from rank `from`. The choice walks through the unit interval, in which each
  /// replica has its share, by the golden ratio (Knuth, The Art of Computer Programming 3, section 6.4): whatever the
  /// number of tokens, a replica has had its share of them within a few, and ranks that send one token each at the same
  /// time spread over the replicas just as well. Null: nobody holds it.
  const ExpertReplica* next(std::int32_t expert, int from);
};

}  // namespace shoal
