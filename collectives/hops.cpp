#include "collectives/hops.h"

#include "base/error.h"

namespace shoal {

std::vector<int> Hops::first() const {
  std::vector<int> ranks;
  for (int rank = two() ? rank_ % per_host_ : 0; rank < ranks_; rank += two() ? per_host_ : 1) ranks.push_back(rank);
  return ranks;
}

std::vector<int> Hops::second() const {
  std::vector<int> ranks;
  const int of_host = rank_ / per_host_ * per_host_;
  for (int rank = of_host; rank < of_host + per_host_; ++rank) ranks.push_back(rank);
  return ranks;
}

Destination Hops::destination(std::int32_t expert, ExpertMap& map) const {
  if (expert < 0) return {};
  const ExpertReplica* there = map.next(expert, rank_);
  if (!there || there->rank < 0 || there->rank >= ranks_)
    fail("expert exchange: rank {} routed a token to expert {}, which no rank holds", rank_, expert);
  if (!two()) return {there->rank, there->local};
  return {there->rank / per_host_, there->rank % per_host_ << kLocalBits | there->local};
}

}  // namespace shoal
