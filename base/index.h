#pragma once
#include <concepts>
#include <cstddef>

namespace shoal {

/// Counts and ranks are signed, containers ask for std::size_t.
std::size_t at(std::integral auto i) { return static_cast<std::size_t>(i); }

}  // namespace shoal
