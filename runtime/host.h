#pragma once
#include <cstdint>
#include <string>

/// The machine this process runs on.
namespace shoal {

std::string host_name();

/// Bytes this host could still hand out (MemAvailable of /proc/meminfo).
std::uint64_t available_memory_bytes();

}  // namespace shoal
