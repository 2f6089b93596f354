#pragma once
#include <cstddef>
#include <cstdint>

namespace shoal::emulation {

/// One rank's part of what NCCL's device interface does for kernels with windows that all ranks have alike. Whoever
/// tests implements it.
class Network {
 public:
  virtual ~Network() = default;
  /// A rank's window as this rank's stores reach it, or null.
  virtual std::byte* stored(int rank) = 0;
  /// From this rank's window to another's, by offsets in them: at any time until the next signal to the same rank.
  virtual void put(int rank, std::int64_t to, std::int64_t from, std::int64_t bytes) = 0;
  /// Counts a number of another rank's up, once all puts to it before are there.
  virtual void signal(int rank, int number) = 0;
  /// How often that was done with this rank's number.
  virtual std::uint64_t signalled(int number) = 0;
};

}  // namespace shoal::emulation
