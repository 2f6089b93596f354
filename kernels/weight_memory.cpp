#include "kernels/weight_memory.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/huge_pages.h"

namespace shoal {
namespace {

constexpr std::size_t kLine = 64;
/// Address space is taken so many bytes at a time, memory as it is written.
constexpr std::size_t kStretch = std::size_t{64} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

class WeightMemory {
 public:
  std::byte* allocate(std::size_t wanted) {
    const std::size_t bytes = round_up(wanted, kLine);
    const std::lock_guard lock(mutex_);
    std::byte* block = take_freed(bytes);
    if (!block) block = take_new(bytes);
    return block;
  }

  void free(std::byte* block) {
    const std::lock_guard lock(mutex_);
    const auto at = stretch_of(block);
    if (--at->second.live > 0) {
      freed_[size_of_.at(block)].push_back(block);
      return;
    }
    std::byte* const begin = at->first;
    std::byte* const end = begin + at->second.bytes;
    const auto inside = [&](const std::byte* p) { return p >= begin && p < end; };
    for (auto& [size, blocks] : freed_) std::erase_if(blocks, inside);
    std::erase_if(size_of_, [&](const auto& entry) { return inside(entry.first); });
    if (current_ == begin) current_ = nullptr;
    unmap_huge_pages(begin, at->second.bytes);
    stretches_.erase(at);
  }

 private:
  struct Stretch {
    std::size_t bytes, used = 0, live = 0;  // live: blocks that are not freed
  };

  std::map<std::byte*, Stretch>::iterator stretch_of(std::byte* block) { return --stretches_.upper_bound(block); }

  std::byte* take_freed(std::size_t bytes) {
    const auto found = freed_.find(bytes);
    if (found == freed_.end() || found->second.empty()) return nullptr;
    std::byte* const block = found->second.back();
    found->second.pop_back();
    ++stretch_of(block)->second.live;
    return block;
  }

  std::byte* take_new(std::size_t bytes) {
    const bool alone = bytes > kStretch / 4;
    std::byte* from = alone ? nullptr : current_;
    if (from && stretches_.at(from).used + bytes > stretches_.at(from).bytes) from = nullptr;
    if (!from) {
      const std::size_t size = alone ? bytes : kStretch;
      from = map_huge_pages(size);
      if (!from) return nullptr;
      stretches_[from] = {size};
      if (!alone) current_ = from;
    }
    Stretch& stretch = stretches_.at(from);
    std::byte* const block = from + stretch.used;
    stretch.used += bytes;
    ++stretch.live;
    size_of_[block] = bytes;
    return block;
  }

  std::mutex mutex_;
  std::map<std::byte*, Stretch> stretches_;  // by where they begin
  std::unordered_map<std::byte*, std::size_t> size_of_;
  std::unordered_map<std::size_t, std::vector<std::byte*>> freed_;
  std::byte* current_ = nullptr;  // the stretch that new blocks come from
};

/// Outlives every matrix, those of static variables among them.
WeightMemory& memory() {
  static WeightMemory* const only = std::make_unique<WeightMemory>().release();
  return *only;
}

}  // namespace

std::byte* allocate_weights(std::size_t bytes) {
  if (kSanitized) return static_cast<std::byte*>(std::aligned_alloc(kLine, round_up(bytes, kLine)));
  return memory().allocate(bytes);
}

void free_weights(std::byte* block) {
  if (kSanitized) return std::free(block);
  memory().free(block);
}

}  // namespace shoal
