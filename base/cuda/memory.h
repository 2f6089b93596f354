#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "base/cuda/check.h"
#include "base/cuda/wait.h"

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
    ++allocated_;
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
  /// How many blocks of this kind the process has made. While it stays, so does where things lie.
  static std::uint64_t allocated() { return allocated_; }

 private:
  static inline std::atomic<std::uint64_t> allocated_{0};
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

inline cudaError_t allocate_device(void** p, std::size_t bytes) { return cudaMalloc(p, bytes); }
inline cudaError_t allocate_pinned(void** p, std::size_t bytes) { return cudaMallocHost(p, bytes); }
using DeviceBlock = Block<allocate_device, cudaFree>;
using PinnedBlock = Block<allocate_pinned, cudaFreeHost>;

/// Device memory that work on one stream shares: it only ever grows, and what it held is lost then. To free the old one
/// waits for all that the GPU has to do; what of that may have to be given up, `settle` waits for before.
class Scratch {
 public:
  explicit Scratch(cudaStream_t stream, std::function<void()> settle = {})
      : stream_(stream), settle_(std::move(settle)) {}
  template <class T>
  T* room(std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (block_.bytes() < bytes) {
      if (settle_) settle_();
      wait_for(stream_, "waiting for the GPU");  // work under way may use the old one
      block_ = DeviceBlock();
      block_ = DeviceBlock(bytes + bytes / 4);
    }
    return reinterpret_cast<T*>(block_.data());
  }

 private:
  cudaStream_t stream_;
  std::function<void()> settle_;
  DeviceBlock block_;
};

/// Small host data on its way to the device: copied to pinned memory at once, so the caller may change it, and from
/// there in the stream's order. What put() returns stays valid until as many bytes more were put as there is room for.
class Uploads {
 public:
  explicit Uploads(cudaStream_t stream, std::size_t bytes = std::size_t{8} << 20)
      : stream_(stream), pinned_(bytes), device_(bytes) {}

  /// Whether put_all() takes them.
  template <class... T>
  bool fit(std::span<const T>... data) const {
    return (padded(data.size_bytes()) + ...) <= most();
  }

  template <class T>
  const T* put(std::span<const T> data) {
    return std::get<0>(put_all(data));
  }
  /// Several at once: one copy.
  template <class... T>
  std::tuple<const T*...> put_all(std::span<const T>... data) {
    const std::size_t bytes = (padded(data.size_bytes()) + ...);
    if (bytes > most()) fail("{:.1f} MB are too much for one upload", 1e-6 * static_cast<double>(bytes));
    if (at_ + bytes > pinned_.bytes()) {
      wait_for(stream_, "waiting for the GPU");  // all that was put has been used
      at_ = 0;
    }
    ++count_;
    std::byte *const from = pinned_.data() + at_, *const to = device_.data() + at_;
    std::size_t used = 0;
    const auto place = [&]<class Value>(std::span<const Value> one) {
      if (!one.empty()) std::memcpy(from + used, one.data(), one.size_bytes());
      const auto* there = reinterpret_cast<const Value*>(to + used);
      used += padded(one.size_bytes());
      return there;
    };
    std::tuple<const T*...> result{place(data)...};  // in order
    if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copying to the GPU");
    at_ += bytes;
    return result;
  }
  template <class T>
  const T* put(const std::vector<T>& data) {
    return put(std::span<const T>(data));
  }
  /// Data of any size, piecewise, into memory that lasts.
  template <class T>
  const T* keep(std::span<const T> data, Scratch& room) {
    T* to = room.room<T>(std::ssize(data));
    const std::size_t most_at_once = most() / 2 / sizeof(T);
    for (std::size_t at = 0; at < data.size(); at += most_at_once) {
      const auto piece = data.subspan(at, std::min(most_at_once, data.size() - at));
      check(cudaMemcpyAsync(to + at, put(piece), piece.size_bytes(), cudaMemcpyDeviceToDevice, stream_),
            "copying on the GPU");
    }
    return to;
  }
  /// How often something was put.
  std::uint64_t count() const { return count_; }

 private:
  static constexpr std::size_t padded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
  std::size_t most() const { return pinned_.bytes() / 2; }  // at once
  cudaStream_t stream_;
  PinnedBlock pinned_;
  DeviceBlock device_;
  std::size_t at_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace shoal::cuda
