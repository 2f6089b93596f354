#pragma once
#include <cstddef>
#include <vector>

#include "collectives/aligned_buffer.h"

namespace shoal {

/// Memory for the records of one exchange at a time. It keeps as much as the longest exchange took in all, wherever its
/// records went: buffers of single ranks would each grow to the longest record of their own, and together to many times
/// that where traffic goes here today and there tomorrow. Buffer: AlignedBuffer, or what does the same.
template <class Buffer = AlignedBuffer>
class RecordMemory {
 public:
  /// Room for `bytes` on a 64-byte boundary, until clear().
  std::byte* take(std::size_t bytes) {
    const std::size_t room = align_up(bytes);
    if (taken_ == 0) block_.reserve(room);  // nothing is in it yet
    taken_ += room;
    if (taken_ <= block_.capacity()) return block_.data() + taken_ - room;
    more_.emplace_back().reserve(room);
    return more_.back().data();
  }

  /// Takes all of it back. What did not fit into one block fits next time.
  void clear() {
    more_.clear();
    block_.reserve(taken_);
    taken_ = 0;
  }

  /// Bytes that are kept between exchanges.
  std::size_t capacity() const { return block_.capacity(); }

 private:
  Buffer block_;
  std::vector<Buffer> more_;
  std::size_t taken_ = 0;
};

}  // namespace shoal
