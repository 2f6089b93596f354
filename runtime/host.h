#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

/// The machine this process runs on.
namespace shoal {

std::string host_name();

/// Bytes that this process could still be given: MemAvailable of /proc/meminfo, or less where a control group that it
/// is in (a container's, a Slurm job's, a service's) allows less. 0 where the system says nothing. `root`: the folder
/// under which proc/ and sys/fs/cgroup/ lie.
std::uint64_t available_memory_bytes(const std::filesystem::path& root = "/");

}  // namespace shoal
