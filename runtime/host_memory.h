#pragma once
#include <cstdint>

namespace shoal {

/// Bytes this host could still hand out (MemAvailable of /proc/meminfo).
std::uint64_t available_memory_bytes();

}  // namespace shoal
