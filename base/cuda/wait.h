#pragma once
#include <chrono>
#include <functional>

#include "base/cuda/check.h"
#include "base/patience.h"

namespace shoal::cuda {

/// What this thread looks at while it waits for its GPU, which may wait for the GPUs of ranks that are gone: throws
/// where it waits in vain. A thread has one at most, and none where it exchanges nothing.
class Watch {
 public:
  using Look = std::function<void(std::chrono::duration<double> waited)>;
  explicit Watch(Look look) : look_(std::move(look)) { current_ = this; }
  ~Watch() {
    if (current_ == this) current_ = nullptr;
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  /// Polls until `done`.
  template <class Done>
  static void wait_until(const Done& done) {
    const auto begin = std::chrono::steady_clock::now();
    Patience patience(false);
    while (!done()) {
      if (current_) current_->look_(std::chrono::steady_clock::now() - begin);
      patience.pause(true);
    }
  }
  static bool is_set() { return current_ != nullptr; }

 private:
  const Look look_;
  static inline thread_local Watch* current_ = nullptr;
};

/// Until all that was put on the stream is done. Error where the Watch says so.
inline void wait_for(cudaStream_t stream, const char* what) {
  if (!Watch::is_set()) return check(cudaStreamSynchronize(stream), what);
  Watch::wait_until([&] {
    const cudaError_t state = cudaStreamQuery(stream);
    if (state != cudaErrorNotReady) check(state, what);
    return state == cudaSuccess;
  });
}

/// Until the event has happened.
inline void wait_for(cudaEvent_t event, const char* what) {
  Watch::wait_until([&] {
    const cudaError_t state = cudaEventQuery(event);
    if (state != cudaErrorNotReady) check(state, what);
    return state == cudaSuccess;
  });
}

}  // namespace shoal::cuda
