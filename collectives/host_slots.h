#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace shoal {

class MpiGroup;

/// Records between the ranks of one host, in memory that they share: the sender writes into a slot of the receiver, who
/// reads it there. Nothing is copied and nobody matches messages; a system call is made only where a rank sleeps.
///
/// A slot is of one receiver, one sender and every fourth exchange. Four suffice without a word back: who writes for
/// exchange n has waited for n - 2, so all have posted n - 2, and nobody reads n - 4 any more (see AllToAll: until the
/// second post after it).
///
/// Slots are as long as records may become, and have memory as far as they were written. Who writes them gives memory
/// back where it has come to more than records of one exchange ever took together, by half.
class HostSlots {
 public:
  /// All ranks of the group make it. `capacity`: bytes of a slot. Where the ranks of a host cannot share memory (each
  /// in a container of its own), none of them reaches another.
  HostSlots(MpiGroup& group, std::size_t capacity);
  ~HostSlots();
  HostSlots(const HostSlots&) = delete;
  HostSlots& operator=(const HostSlots&) = delete;

  /// Whether there is a rank to share memory with. Where there is none, only reaches() may be called.
  bool any() const { return regions_[static_cast<std::size_t>(me_)] != nullptr; }
  /// Whether records to and from `rank` go through slots; the same on both sides.
  bool reaches(int rank) const { return of_rank_[static_cast<std::size_t>(rank)] >= 0; }

  /// [bytes] where to write for `dest`, once an exchange and at most `capacity`; then post() gives it away, and may say
  /// any number of bytes.
  std::byte* outgoing(std::uint64_t exchange, int dest, std::size_t bytes);
  void post(std::uint64_t exchange, int dest, std::uint64_t bytes);
  /// What `src` said with post(); nothing while it has not.
  std::optional<std::uint64_t> arrived(std::uint64_t exchange, int src) const;
  const std::byte* incoming(std::uint64_t exchange, int src) const;

  /// Posts to this rank so far, to be read before looking at what arrived; sleep(posts) returns when there are more,
  /// and now and then before.
  std::uint32_t posts() const;
  void sleep(std::uint32_t posts);

 private:
  struct Bell;
  struct Slot;
  static constexpr std::uint64_t kSlotsOfPair = 4;
  Bell& bell(int of) const;
  /// A slot of local rank `receiver` for what local rank `sender` writes.
  Slot& slot(int receiver, int sender, std::uint64_t exchange) const;
  /// Maps every rank's region; false where that does not work.
  bool share(MpiGroup& group);
  void unmap();
  /// Counts what is about to be written into a slot, and gives memory of others back where there is too much.
  void count(std::uint64_t exchange, int receiver, std::size_t bytes);

  const std::size_t capacity_;
  int me_ = 0;                // among the ranks of this host
  std::vector<int> of_rank_;  // [ranks of the group] among the ranks of this host; -1: not reached
  /// [ranks of this host] what the others write for a rank: in that rank's memory, and all map it.
  std::vector<std::byte*> regions_;
  std::size_t region_bytes_ = 0;

  /// Of the slots that this rank writes in every fourth exchange.
  struct Written {
    std::uint64_t exchange = 0;            // the latest
    std::vector<std::size_t> bytes, held;  // [ranks of this host] that it wrote, and that have memory
    std::size_t all_bytes = 0, all_held = 0;
  };
  std::array<Written, kSlotsOfPair> written_;
  std::size_t longest_ = 0;  // bytes of an exchange in all
};

}  // namespace shoal
