#pragma once
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

namespace shoal {

/// Bytes on a 64-byte boundary that grow when asked and never shrink, so that a repeated exchange stops allocating.
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  std::size_t capacity() const { return capacity_; }

  /// Room for `bytes`, of which the first `keep` stay as they are.
  void reserve(std::size_t bytes, std::size_t keep = 0) {
    if (bytes <= capacity_) return;
    const std::size_t wanted = std::max(bytes, capacity_ + capacity_ / 2);
    std::unique_ptr<std::byte[], Free> grown(
        static_cast<std::byte*>(::operator new[](wanted, std::align_val_t{kAlignment})));
    if (keep > 0) std::memcpy(grown.get(), bytes_.get(), keep);
    bytes_ = std::move(grown);
    capacity_ = wanted;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<std::byte[], Free> bytes_;
  std::size_t capacity_ = 0;
};

/// `bytes` rounded up to the next multiple of the alignment of rows and slots.
constexpr std::size_t align_up(std::size_t bytes) {
  return (bytes + AlignedBuffer::kAlignment - 1) / AlignedBuffer::kAlignment * AlignedBuffer::kAlignment;
}

}  // namespace shoal
