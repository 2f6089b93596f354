#pragma once
#include <span>

#include "base/cuda/stream.h"
#include "collectives/device_transport.h"

namespace shoal::cuda {

/// Exchanges between GPUs on a stream of their own, beside what another one computes.
class Traffic {
 public:
  explicit Traffic(DeviceTransport* transport) : transport_(transport) {}

  /// Where exchanges go, for what is done with rows between two of them.
  cudaStream_t stream() const { return stream_; }
  /// The next exchange follows what was put on `stream` so far.
  void follow(cudaStream_t stream) { check(cudaEventRecord(ready_, stream), "cudaEventRecord"); }
  void exchange(std::span<const DeviceTransport::Piece> to, std::span<const DeviceTransport::Piece> from) {
    check(cudaStreamWaitEvent(stream_, ready_), "cudaStreamWaitEvent");
    transport_->exchange(to, from, stream_);
    check(cudaEventRecord(arrived_, stream_), "cudaEventRecord");
  }
  /// Waits until all exchanges are over, those of others too.
  void settle() const {
    if (transport_) transport_->settle();
  }
  /// What is put on `stream` from now on follows the last exchange.
  void precede(cudaStream_t stream) { check(cudaStreamWaitEvent(stream, arrived_), "cudaStreamWaitEvent"); }

 private:
  DeviceTransport* const transport_;
  const Stream stream_{true};
  const Event ready_, arrived_;
};

}  // namespace shoal::cuda
