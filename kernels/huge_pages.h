#pragma once
#include <cstddef>

namespace shoal {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

/// Under a sanitizer, blocks should come from its heap, so that it sees where each ends.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// Zeroed memory that begins with a huge page, and lies in such pages where the system has them; it is taken from the
/// system as it is first written. Null when there is none left. `unmap` gives it back at once, where freed memory of
/// the heap may stay in its gaps. Lengths that are not whole pages of 4 KB are rounded up.
std::byte* map_huge_pages(std::size_t bytes);
void unmap_huge_pages(std::byte* begin, std::size_t bytes);

}  // namespace shoal
