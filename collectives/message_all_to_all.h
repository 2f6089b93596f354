#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/patience.h"
#include "collectives/aligned_buffer.h"
#include "collectives/communicator.h"
#include "collectives/host_slots.h"
#include "collectives/messages.h"
#include "collectives/mpi_group.h"
#include "collectives/record_memory.h"

namespace shoal {

/// How records are cut into messages, in bytes. Tests make them small.
struct MessageSizes {
  std::size_t eager = 64 << 10;  // what travels with the length, in the first message
  std::size_t chunk = 1 << 30;   // libraries count in int
  std::size_t slot = 16 << 20;   // of a record between ranks of a host, what goes through shared memory
};

/// AllToAll over messages between each pair of ranks of a group.
///
/// The first message is {u64 bytes, the payload if it is no longer than `eager`}: short records need no second one, and
/// no exchange of counts goes ahead of them. Longer ones follow in messages whose size the receiver then knows. They
/// lie in memory that grows when an exchange is longer, in all, than any before.
///
/// Between ranks of one host the first message is a slot of HostSlots, where records are written and read in place (it
/// is as long as they usually are; memory is taken when they come), and who waits for such alone sleeps until they
/// come.
class MessageAllToAll : public AllToAll {
 public:
  /// All ranks of the group make it.
  explicit MessageAllToAll(std::shared_ptr<MpiGroup> group, MessageSizes sizes = {});
  /// crowded: as Patience's; the group's otherwise.
  MessageAllToAll(std::shared_ptr<MpiGroup> group, MessageSizes sizes, bool crowded);
  ~MessageAllToAll() override;
  MessageAllToAll(const MessageAllToAll&) = delete;
  MessageAllToAll& operator=(const MessageAllToAll&) = delete;

  std::span<std::byte> outgoing(int dest, std::size_t bytes) override;
  void post(std::span<const std::size_t> bytes) override;
  void wait() override;
  std::span<const std::byte> incoming(int src) const override;

 private:
  /// One of the two exchanges that may be under way, with its memory.
  struct Round {
    RecordMemory<> send, receive;              // what travels in messages, but for:
    AlignedBuffer first;                       // [ranks] first messages that come
    std::vector<std::byte*> to;                // [ranks] payloads in `send`; null: not asked for, or in a slot
    std::vector<const std::byte*> from;        // [ranks] payloads that came, wherever they lie
    std::vector<std::size_t> asked, received;  // [ranks] bytes of payload
    std::vector<std::uint64_t> lengths;        // [ranks] first messages that go, where they hold nothing else
    /// First messages from each rank, to each rank, then those that carry what did not fit.
    std::unique_ptr<MessageSet> messages;
    std::vector<int> first_from;    // whose first messages the first of these are
    std::size_t first_missing = 0;  // of these, not yet here
    std::size_t pending = 0;        // messages not yet complete
    bool only_first = true;         // none carries what did not fit
    std::vector<int> from_host;     // ranks whose first message is not yet in its slot
    bool complete() const { return pending == 0 && from_host.empty(); }
  };

  Round& round(std::uint64_t exchange) { return rounds_[exchange % 2]; }
  const Round& round(std::uint64_t exchange) const { return rounds_[exchange % 2]; }
  AlignedBuffer& own(std::uint64_t exchange) { return own_[exchange % 3]; }
  void check_room() const;
  bool on_host(int peer) const { return slots_ && slots_->reaches(peer); }
  /// Whether the first message between this rank and `peer` holds the record.
  bool in_first(int peer, std::size_t bytes) const { return bytes <= (on_host(peer) ? sizes_.slot : sizes_.eager); }
  /// Where the first message from `src` has its payload; the length lies just before.
  std::byte* first_payload(Round& r, int src) const;
  void send(std::uint64_t exchange, int dest, std::size_t bytes);
  void first_arrived(std::uint64_t exchange, int src, std::size_t bytes);
  void progress(std::uint64_t exchange);
  void progress_all();

  /// Consecutive exchanges differ in tag; messages of one tag arrive in the order in which they were sent.
  int first_tag(std::uint64_t exchange) const { return tags_ + static_cast<int>(exchange % 2); }
  int rest_tag(std::uint64_t exchange) const { return tags_ + 2 + static_cast<int>(exchange % 2); }

  const std::shared_ptr<MpiGroup> group_;
  const MessageSizes sizes_;
  const int rank_, ranks_, tags_;
  std::unique_ptr<HostSlots> slots_;
  std::array<Round, 2> rounds_;
  /// What a rank sends to itself stays where it was written. It may be read until the second post() after the exchange,
  /// and the next record is written before that post: hence three.
  std::array<AlignedBuffer, 3> own_;
  std::array<std::size_t, 3> own_bytes_{};
  std::vector<int> completed_;
  Patience patience_;
  std::uint64_t posts_ = 0, waits_ = 0;
  bool posting_ = false;  // one more than posts_ is being begun
};

}  // namespace shoal
