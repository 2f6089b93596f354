#pragma once
#include "base/cuda/check.h"

namespace shoal::cuda {

/// `urgent`: its kernels begin before waiting ones of other streams.
inline cudaStream_t new_stream(bool urgent = false) {
  int least = 0, most = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &most), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? most : least), "cudaStreamCreate");
  return stream;
}

/// For order alone.
inline cudaEvent_t new_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return event;
}

/// They end with their owner.
class Stream {
 public:
  explicit Stream(bool urgent = false) : stream_(new_stream(urgent)) {}
  explicit Stream(cudaStream_t) = delete;  // or a handle would be "urgent"
  ~Stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_;
};
class Event {
 public:
  Event() : event_(new_event()) {}
  ~Event() { static_cast<void>(cudaEventDestroy(event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_;
};

}  // namespace shoal::cuda
