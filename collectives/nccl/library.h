#pragma once
#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "base/cuda/runtime_api.h"
#include "collectives/device_transport.h"

namespace shoal {

/// One rank's membership in a group of GPUs. Calls return at once; what they start happens on a stream.
class NcclGroup {
 public:
  virtual ~NcclGroup() = default;
  /// Sends and receives between start() and end() go on together. Rank r's n-th send to rank s meets rank s's n-th
  /// receive from rank r, of the same size.
  virtual void start() = 0;
  virtual void send(const void* device_memory, std::size_t bytes, int peer, cudaStream_t stream) = 0;
  virtual void receive(void* device_memory, std::size_t bytes, int peer, cudaStream_t stream) = 0;
  virtual void end() = 0;
  /// What went wrong since, on this rank or as far as it heard of others; empty: nothing.
  virtual std::string error() = 0;
  /// Ends all that is under way, here; nothing else may be called after it.
  virtual void abort() = 0;
};

/// The part of NCCL that the exchange stands on: the library itself, or a stand-in for tests.
class NcclLibrary {
 public:
  virtual ~NcclLibrary() = default;
  using Id = std::array<char, 128>;
  virtual std::string version() = 0;
  /// One rank makes it and gives it to all.
  virtual Id make_id() = 0;
  /// Every rank calls it, with its own GPU current; returns when all have.
  virtual std::unique_ptr<NcclGroup> join(int ranks, const Id& id, int rank) = 0;
  /// Why there are no windows, as far as one rank can know by itself; empty: there may be.
  virtual std::string why_no_windows() = 0;
  /// Every rank calls it, with an id of its own for each window. Error where it is not to be had, which may be on some
  /// ranks only.
  virtual std::shared_ptr<DeviceWindow> open_window(int ranks, const Id& id, int rank, std::size_t bytes,
                                                    int signals) = 0;
};

}  // namespace shoal
