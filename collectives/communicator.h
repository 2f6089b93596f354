#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace shoal {

class DeviceTransport;

/// Ends a wait for ranks that will not answer any more: some were lost, and those that are left begin anew.
class LeftBehind : public Error {
 public:
  using Error::Error;
};

/// A repeatable all-to-all whose memory outlives single exchanges, so that a back end may let the sender write straight
/// into the receiver's slot (shared memory, UCX put, NCCL window) or send from registered memory (MPI). One exchange:
///
///   for each d: write n_d bytes at outgoing(d, n_d);  post({n_0, n_1, ...});  ... other work ...;  wait();
///   for each s: read incoming(s)
///
/// Every rank posts every exchange, with nothing to say too: counts travel with the records and there is no barrier.
/// incoming() stays valid until the second post() after it (two exchanges may overlap). What is addressed to the own
/// rank is not copied.
class AllToAll {
 public:
  virtual ~AllToAll() = default;
  /// Room for `bytes` bytes to rank `dest`, 64-byte aligned. May be called once per destination and exchange.
  virtual std::span<std::byte> outgoing(int dest, std::size_t bytes) = 0;
  /// Starts the exchange; bytes[d] <= what was asked of outgoing (0 where it was not called).
  virtual void post(std::span<const std::size_t> bytes) = 0;
  /// Returns when every rank's records are here.
  virtual void wait() = 0;
  virtual std::span<const std::byte> incoming(int src) const = 0;
};

/// Ranks that move data together. Collective calls are made by one thread of each rank (MPI_THREAD_FUNNELED), in the
/// same order on all. A dead rank is not noticed here: the control plane does that, and ends the job or has those that
/// are left go on, whose waits then end with LeftBehind.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// "in-process", "mpi (Open MPI 4.1.4)": for the start-up summary.
  virtual std::string description() const = 0;

  /// `usual`: bytes that a record seldom has more of (0: unknown), for back ends that send so many at once. `among`:
  /// not all ranks (empty) but some, ascending, numbered anew from 0; every rank then makes one, with those that it is
  /// among.
  virtual std::unique_ptr<AllToAll> make_all_to_all(std::size_t usual = 0, std::span<const int> among = {}) = 0;
  /// How many ranks share a host, where each host has as many, numbered in a row; else 1.
  virtual int ranks_per_host() const { return 1; }
  /// Where data can go from GPU to GPU; null: not here. Lives as long as the communicator.
  virtual DeviceTransport* device_transport() { return nullptr; }
  /// data += every other rank's data, added in ascending rank order on every rank: the same bits everywhere.
  virtual void all_reduce_sum(std::span<float> data) = 0;
  /// Concatenates the ranks' parts in rank order into `all`; counts[r] floats come from rank r (counts[rank()] of
  /// `mine`).
  virtual void all_gather_v(std::span<const float> mine, std::span<const std::size_t> counts, std::span<float> all) = 0;
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  virtual void barrier() = 0;
  /// Throws LeftBehind where waits of this communicator are to end.
  virtual void check_current() const {}
};

/// A job of one rank.
std::unique_ptr<Communicator> make_self_communicator();

/// Runs `body(communicator)` as `ranks` threads of this process, for tests. Rethrows the first rank's exception after
/// all have ended; a rank that throws wakes the ones that wait for it, and they throw too. `meanwhile`: what a rank
/// does over and over while it waits.
void run_in_process(int ranks, const std::function<void(Communicator&)>& body, int ranks_per_host = 1,
                    std::function<void()> meanwhile = {});

}  // namespace shoal
