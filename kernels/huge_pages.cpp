#include "kernels/huge_pages.h"

#include <sys/mman.h>

#include <cstdint>

namespace shoal {
namespace {

constexpr std::size_t kPage = 4096;

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

std::byte* map_huge_pages(std::size_t bytes) {
  bytes = round_up(bytes, kPage);
  void* const p = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto* const mapped = static_cast<std::byte*>(p);
  const auto address = reinterpret_cast<std::uintptr_t>(mapped);
  const std::size_t before = round_up(address, kHugePage) - address;
  std::byte* const begin = mapped + before;
  if (before > 0) munmap(mapped, before);
  if (before < kHugePage) munmap(begin + bytes, kHugePage - before);
  madvise(begin, bytes, MADV_HUGEPAGE);
  return begin;
}

void unmap_huge_pages(std::byte* begin, std::size_t bytes) { munmap(begin, round_up(bytes, kPage)); }

}  // namespace shoal
