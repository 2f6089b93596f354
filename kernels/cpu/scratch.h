#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace shoal::cpu {

/// Memory that is reused from call to call and grows when a call needs more; what it held is then lost. 64-byte
/// aligned; in huge pages where it is large.
class Scratch {
 public:
  std::byte* bytes(std::int64_t n) {
    if (n > size_) {
      // Half as much again, so that a slowly growing batch does not allocate at every step.
      const std::int64_t alignment = n >= kHugePage ? kHugePage : 64;
      size_ = (n + n / 2 + alignment - 1) / alignment * alignment;
      data_.reset();
      const auto bytes = static_cast<std::size_t>(size_);
      data_.reset(static_cast<std::byte*>(std::aligned_alloc(static_cast<std::size_t>(alignment), bytes)));
      if (!data_) throw std::bad_alloc();
      if (alignment == kHugePage) madvise(data_.get(), bytes, MADV_HUGEPAGE);
    }
    return data_.get();
  }
  float* floats(std::int64_t n) { return reinterpret_cast<float*>(bytes(n * 4)); }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  static constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

  std::unique_ptr<std::byte[], Free> data_;
  std::int64_t size_ = 0;
};

/// Hands out aligned pieces of one Scratch: first ask for all, then take them.
class Layout {
 public:
  /// Offset of a piece of `bytes`.
  std::int64_t add(std::int64_t bytes) {
    const std::int64_t at = size_;
    size_ += (bytes + 63) / 64 * 64;
    return at;
  }
  std::int64_t size() const { return size_; }

 private:
  std::int64_t size_ = 0;
};

}  // namespace shoal::cpu
