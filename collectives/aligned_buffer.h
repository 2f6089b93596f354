#pragma once
#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>

namespace shoal {

/// Bytes on a 64-byte boundary that grow when asked and never shrink, so that a repeated exchange stops allocating.
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  std::byte* data() { return bytes_.get(); }
  const std::byte* data() const { return bytes_.get(); }
  std::size_t capacity() const { return capacity_; }

  /// Room for `bytes`; where that is more than before, what was in it is gone.
  void reserve(std::size_t bytes) {
    if (bytes <= capacity_) return;
    const std::size_t wanted = std::max(bytes, capacity_ + capacity_ / 2);
    bytes_.reset();  // first, so that there are never two
    capacity_ = 0;
    bytes_.reset(static_cast<std::byte*>(::operator new[](wanted, std::align_val_t{kAlignment})));
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
