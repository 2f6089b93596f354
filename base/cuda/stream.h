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

}  // namespace shoal::cuda
