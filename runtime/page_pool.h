#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace shoal {

/// The KV cache pages of one rank: which are free. Knows numbers only, no memory; the worker owns that.
class PagePool {
 public:
  explicit PagePool(int pages);

  int size() const { return static_cast<int>(in_use_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  int used() const { return size() - free(); }

  /// `n` free pages, in no particular order. Error when fewer are free: the caller looks at free() first.
  std::vector<std::int32_t> allocate(int n);
  /// Gives pages back. Error, and nothing is given back, when one of them is not in use: freed twice, or never ours.
  void release(std::span<const std::int32_t> pages);

 private:
  std::vector<std::int32_t> free_;  // a stack: what was used last is reused first, while it may still be in a cache
  std::vector<bool> in_use_;        // [pages]
};

}  // namespace shoal
