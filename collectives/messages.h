#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace shoal {

/// Messages that are under way together. Ranks are those of the job; a message meets the receive with the same tag from
/// its sender, in the order in which both were begun. The receiver's room may be larger than the message.
///
/// The memory of a message must stay until it has completed; and for good where a set ends before that.
class MessageSet {
 public:
  virtual ~MessageSet() = default;
  virtual void receive(int src, int tag, std::span<std::byte> to) = 0;
  virtual void send(int dest, int tag, std::span<const std::byte> from) = 0;
  /// Moves messages along; appends those that have completed since the last call, numbered from 0 in the order in which
  /// they were begun.
  virtual void progress(std::vector<int>& completed) = 0;
  /// Begins anew, when all have completed.
  virtual void clear() = 0;
};

/// What carries messages between the ranks of a job.
class Wire {
 public:
  virtual ~Wire() = default;
  /// "mpi (Open MPI 4.1.4)": for the start-up summary.
  virtual std::string description() const = 0;
  virtual std::unique_ptr<MessageSet> make_set() = 0;
};

}  // namespace shoal
