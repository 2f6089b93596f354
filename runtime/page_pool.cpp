#include "runtime/page_pool.h"

#include <numeric>

#include "base/error.h"

namespace shoal {

PagePool::PagePool(int pages) {
  if (pages < 0) fail("a KV cache cannot have {} pages", pages);
  free_.resize(static_cast<std::size_t>(pages));
  std::iota(free_.rbegin(), free_.rend(), 0);  // low numbers are handed out first
  in_use_.resize(free_.size(), false);
}

std::vector<std::int32_t> PagePool::allocate(int n) {
  if (n < 0 || n > free()) fail("{} KV pages were asked for where {} of {} are free", n, free(), size());
  std::vector<std::int32_t> pages(free_.rbegin(), free_.rbegin() + n);
  free_.resize(free_.size() - pages.size());
  for (const std::int32_t page : pages) in_use_[static_cast<std::size_t>(page)] = true;
  return pages;
}

void PagePool::release(std::span<const std::int32_t> pages) {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::int32_t page = pages[i];
    if (page >= 0 && page < size() && in_use_[static_cast<std::size_t>(page)]) {
      in_use_[static_cast<std::size_t>(page)] = false;
      continue;
    }
    for (std::size_t done = 0; done < i; ++done) in_use_[static_cast<std::size_t>(pages[done])] = true;
    fail("KV page {} of {} was released but is not in use", page, size());
  }
  free_.insert(free_.end(), pages.rbegin(), pages.rend());
}

}  // namespace shoal
