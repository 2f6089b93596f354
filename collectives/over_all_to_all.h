#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"

namespace shoal {

/// The other collectives, made of all-to-alls alone, so that a back end brings only its AllToAll. What is summed is
/// summed here and in rank order, whichever way the bytes went.
///
/// A barrier or a broadcast costs ranks - 1 messages a rank: they belong to start-up, not to a step.
class CollectivesOverAllToAll : public Communicator {
 public:
  void all_reduce_sum(std::span<float> data) override;
  void all_gather_v(std::span<const float> mine, std::span<const std::size_t> counts, std::span<float> all) override;
  void broadcast(std::span<std::byte> data, int root) override;
  void barrier() override;

 protected:
  /// Frees the all-to-all of these collectives; for back ends whose resources must outlive it.
  void release_exchange() { exchange_.reset(); }

 private:
  AllToAll& exchange();
  /// Writes `bytes` to every rank but this one, then exchanges.
  void exchange_same(std::span<const std::byte> bytes);
  void sum_pieces_from_all(std::span<float> data);
  void sum_by_slices(std::span<float> data);
  /// data = sum over ranks r of parts_[r], in ascending r. parts_[rank()] may be `data` itself.
  void add_parts(std::span<float> data) const;

  std::unique_ptr<AllToAll> exchange_;
  std::vector<std::size_t> bytes_;
  std::vector<const float*> parts_;
};

}  // namespace shoal
