#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "base/cuda/check.h"

namespace shoal::cuda {

/// A block of device or of pinned host memory; uninitialised.
template <cudaError_t (*kAllocate)(void**, std::size_t), cudaError_t (*kFree)(void*)>
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t bytes) : bytes_(bytes) {
    if (kAllocate(&memory_, std::max<std::size_t>(bytes, 1)) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      fail("no GPU memory left: {:.1f} MB were asked for", 1e-6 * static_cast<double>(bytes));
    }
  }
  Block(Block&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Block() {
    if (memory_) static_cast<void>(kFree(memory_));
  }
  std::byte* data() const { return static_cast<std::byte*>(memory_); }
  std::size_t bytes() const { return bytes_; }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

inline cudaError_t allocate_device(void** p, std::size_t bytes) { return cudaMalloc(p, bytes); }
inline cudaError_t allocate_pinned(void** p, std::size_t bytes) { return cudaMallocHost(p, bytes); }
using DeviceBlock = Block<allocate_device, cudaFree>;
using PinnedBlock = Block<allocate_pinned, cudaFreeHost>;

/// Device memory that work on one stream shares: it only ever grows, and what it held is lost then.
class Scratch {
 public:
  explicit Scratch(cudaStream_t stream) : stream_(stream) {}
  template <class T>
  T* room(std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (block_.bytes() < bytes) {
      check(cudaStreamSynchronize(stream_), "waiting for the GPU");  // work under way may use the old one
      block_ = DeviceBlock();
      block_ = DeviceBlock(bytes + bytes / 4);
    }
    return reinterpret_cast<T*>(block_.data());
  }

 private:
  cudaStream_t stream_;
  DeviceBlock block_;
};

/// Small host data on its way to the device: copied to pinned memory at once, so the caller may change it, and from
/// there in the stream's order. What put() returns stays valid until kBytes more were put.
class Uploads {
 public:
  explicit Uploads(cudaStream_t stream) : stream_(stream), pinned_(kBytes), device_(kBytes) {}

  template <class T>
  const T* put(std::span<const T> data) {
    const std::size_t bytes = data.size_bytes();
    if (bytes > kBytes / 2) fail("{:.1f} MB are too much for one upload", 1e-6 * static_cast<double>(bytes));
    if (at_ + bytes > kBytes) {
      check(cudaStreamSynchronize(stream_), "waiting for the GPU");  // all that was put has been used
      at_ = 0;
    }
    std::byte *from = pinned_.data() + at_, *to = device_.data() + at_;
    at_ += (bytes + 255) / 256 * 256;
    if (bytes > 0) {
      std::memcpy(from, data.data(), bytes);
      check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
    }
    return reinterpret_cast<const T*>(to);
  }
  template <class T>
  const T* put(const std::vector<T>& data) {
    return put(std::span<const T>(data));
  }

 private:
  static constexpr std::size_t kBytes = std::size_t{8} << 20;
  cudaStream_t stream_;
  PinnedBlock pinned_;
  DeviceBlock device_;
  std::size_t at_ = 0;
};

}  // namespace shoal::cuda
