#pragma once
#include <gtest/gtest.h>

#include <vector>

#include "base/cuda/memory.h"

namespace shoal::cuda {

/// A test with a stream of its own.
class OnStream : public testing::Test {
 protected:
  OnStream() { check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream"); }
  ~OnStream() override { static_cast<void>(cudaStreamDestroy(stream)); }

  /// Device memory once all work before is done.
  template <class T>
  std::vector<T> read(const T* from, std::size_t n) {
    std::vector<T> out(n);
    check(cudaMemcpyAsync(out.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost, stream), "copy");
    check(cudaStreamSynchronize(stream), "wait");
    return out;
  }

  cudaStream_t stream = nullptr;
};

}  // namespace shoal::cuda
