#pragma once
#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace shoal {

/// Records between the ranks of one host, in memory that they share: the sender writes into a slot of the receiver, who
/// reads it there. Nothing is copied and nobody matches messages; a system call is made only where a rank sleeps.
///
/// A slot is of one receiver, one sender and every fourth exchange. Four suffice without a word back: who writes for
/// exchange n has waited for n - 2, so all have posted n - 2, and nobody reads n - 4 any more (see AllToAll: until the
/// second post after it).
class HostSlots {
 public:
  /// Collective over `comm`. `capacity`: bytes of a slot. Where the ranks of a host cannot share memory (each in a
  /// container of its own), none of them reaches another.
  HostSlots(MPI_Comm comm, std::size_t capacity);
  ~HostSlots();
  HostSlots(const HostSlots&) = delete;
  HostSlots& operator=(const HostSlots&) = delete;

  /// Whether there is a rank to share memory with. Where there is none, only reaches() may be called.
  bool any() const { return regions_[static_cast<std::size_t>(me_)] != nullptr; }
  /// Whether records to and from `rank` go through slots; the same on both sides.
  bool reaches(int rank) const { return of_rank_[static_cast<std::size_t>(rank)] >= 0; }

  /// [capacity] where to write for `dest`; then post() gives it away. `bytes`: any number that says what was sent.
  std::byte* outgoing(std::uint64_t exchange, int dest);
  void post(std::uint64_t exchange, int dest, std::uint64_t bytes);
  /// What `src` said with post(); nothing while it has not.
  std::optional<std::uint64_t> arrived(std::uint64_t exchange, int src) const;
  const std::byte* incoming(std::uint64_t exchange, int src) const;

  /// Posts to this rank so far, to be read before looking at what arrived; sleep(posts) returns when there are more.
  std::uint32_t posts() const;
  void sleep(std::uint32_t posts);

 private:
  struct Bell;
  struct Slot;
  Bell& bell(int of) const;
  /// A slot of local rank `receiver` for what local rank `sender` writes.
  Slot& slot(int receiver, int sender, std::uint64_t exchange) const;
  /// Maps every rank's region; false where that does not work.
  bool share(MPI_Comm host);
  void unmap();

  const std::size_t capacity_;
  int me_ = 0;                // among the ranks of this host
  std::vector<int> of_rank_;  // [ranks of comm] among the ranks of this host; -1: not reached
  /// [ranks of this host] what the others write for a rank: in that rank's memory, and all map it.
  std::vector<std::byte*> regions_;
  std::size_t region_bytes_ = 0;
};

}  // namespace shoal
