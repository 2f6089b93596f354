#pragma once
#include <mpi.h>
#include <sched.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collectives/messages.h"

namespace shoal {

/// Where a rank of the job runs.
struct MpiPlace {
  int host = 0;       // the same number for all ranks that share a host
  cpu_set_t cores{};  // that it may run on
};

/// The job as MPI started it.
struct MpiWorld {
  MPI_Comm comm = MPI_COMM_NULL;  // of all ranks; errors are returned
  std::vector<MpiPlace> places;   // [ranks of the job]
  std::shared_ptr<Wire> wire;     // what carries records between hosts
  /// The group that counts now: waits of earlier ones end with LeftBehind. Set by any thread.
  std::atomic<std::uint32_t> epoch{0};
};

/// Ranks of a job that exchange messages: all of them, or those that are left. They make no collective call of MPI,
/// which could not end where a rank is gone (Open MPI 4 never says so): only messages between two ranks, with tags of
/// their own for each group and each exchange.
class MpiGroup {
 public:
  /// Makes no call that others have to make, too. `members`: ranks of the job, ascending, this one among them.
  MpiGroup(std::shared_ptr<MpiWorld> world, std::vector<int> members, std::uint32_t epoch);
  /// All ranks of the job.
  explicit MpiGroup(std::shared_ptr<MpiWorld> world, std::uint32_t epoch = 0);

  Wire& wire() const { return *world_->wire; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(members_.size()); }
  /// The rank in the job of a rank of the group.
  int in_job(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  /// This rank and the others on its host, ascending.
  const std::vector<int>& on_host() const { return on_host_; }
  /// Whether these are more than the cores that they have together: each may be bound to some of its own.
  bool crowded() const { return crowded_; }

  /// Some of the group's ranks, ascending, this one among them: they exchange messages with tags of the group's. Every
  /// rank of the group makes a part, of those that it is among.
  std::shared_ptr<MpiGroup> part(std::span<const int> ranks) const;
  /// How many ranks share a host, where each host has as many, numbered in a row; else 1.
  int ranks_per_host() const;

  /// Throws LeftBehind where another group counts by now.
  void check_current() const;

  /// Tags of one exchange, kTags of them from the one returned on, until they are given back. All ranks of the group
  /// take and return them in the same order, and so have the same.
  int take_tags();
  void give_back(int first_tag);
  static constexpr int kTags = 4;

  /// Every rank of `ranks`, this one among them, calls it: all[i] is what ranks[i] gave as `mine`.
  template <class T>
  std::vector<T> gather(std::span<const int> ranks, const T& mine) {
    std::vector<T> all(ranks.size());
    gather_bytes(ranks, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
    return all;
  }
  /// The same for bytes, as many on each rank.
  void gather_bytes(std::span<const int> ranks, std::span<const std::byte> mine, std::span<std::byte> all);

 private:
  int host_of(int rank) const { return world_->places[static_cast<std::size_t>(in_job(rank))].host; }
  /// rank_ and on_host_, of members_.
  void find_own_place();

  std::shared_ptr<MpiWorld> world_;
  std::vector<int> members_;
  std::uint32_t epoch_;
  int rank_ = 0;
  std::vector<int> on_host_;
  bool crowded_ = false;
  std::shared_ptr<std::vector<bool>> taken_;  // sets of tags, of a group and its parts
};

/// Throws Error with MPI's own words if `code` is not MPI_SUCCESS.
void check_mpi(int code, const char* what);

/// Collective over MPI_COMM_WORLD: where each rank runs. Its wire is MPI.
std::shared_ptr<MpiWorld> make_mpi_world();

/// Those that this rank may run on; one where the system does not say.
cpu_set_t usable_cores();

}  // namespace shoal
