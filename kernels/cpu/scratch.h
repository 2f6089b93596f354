#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/huge_pages.h"

namespace shoal::cpu {

/// Memory that is reused from call to call and grows when a call needs more; what it held is then lost. 64-byte
/// aligned; in huge pages where it is large.
class Scratch {
 public:
  std::byte* bytes(std::int64_t n) {
    if (n > size_) {
      data_.reset();
      size_ = 0;
      // Half as much again, so that a slowly growing batch does not allocate at every step.
      const std::int64_t size = (n + n / 2 + 63) / 64 * 64;
      const auto bytes = static_cast<std::size_t>(size);
      const bool large = bytes >= kHugePage && !kSanitized;
      auto* const p = large ? map_huge_pages(bytes) : static_cast<std::byte*>(std::aligned_alloc(64, bytes));
      if (!p) throw std::bad_alloc();
      data_ = {p, Free{large ? bytes : 0}};
      size_ = size;
    }
    return data_.get();
  }
  float* floats(std::int64_t n) { return reinterpret_cast<float*>(bytes(n * 4)); }

 private:
  struct Free {
    std::size_t mapped;  // bytes; 0: of the heap
    void operator()(std::byte* p) const { mapped > 0 ? unmap_huge_pages(p, mapped) : std::free(p); }
  };

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
