#pragma once
#include <cstddef>

namespace shoal {

/// Memory for a matrix of weights, 64-byte aligned and in huge pages: matrices are put side by side in large stretches,
/// because a step reads all of them once, in order, and with pages of 4 KB it would wait for address translation (an
/// expert of 1 MB reads a third slower). Null when there is none left. Thread-safe.
std::byte* allocate_weights(std::size_t bytes);

/// Gives it back; matrices of the same size take its place, as experts do that move from rank to rank.
void free_weights(std::byte* block);

}  // namespace shoal
