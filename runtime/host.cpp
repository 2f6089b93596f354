#include "runtime/host.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

namespace shoal {
namespace {

namespace fs = std::filesystem;

/// The number that a file holds; nothing where there is no file, or a word ("max").
std::optional<std::uint64_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  std::uint64_t number = 0;
  return in >> number ? std::optional(number) : std::nullopt;
}

/// The number behind `key` in a file of lines "key number ...".
std::optional<std::uint64_t> number_of(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  std::string word, rest;
  for (std::uint64_t number = 0; in >> word >> number; std::getline(in, rest))
    if (word == key) return number;
  return {};
}

/// How the two versions of control groups name what they say about memory.
struct GroupFiles {
  const char *limit, *usage;
  const char* cached[2];  // keys of memory.stat
};
constexpr GroupFiles version_1{
    "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file", "total_active_file"}};
constexpr GroupFiles version_2{"memory.max", "memory.current", {"inactive_file", "active_file"}};

/// Bytes that a group and all that it is in would still give. `mount`: where their files are. A container may see its
/// own group there as if it were the root, under a path that names it from outside: what is not found says nothing.
std::uint64_t left_in_group(const fs::path& mount, const fs::path& group, const GroupFiles& files) {
  std::uint64_t least = std::numeric_limits<std::uint64_t>::max();
  for (fs::path of = group;; of = of.parent_path()) {
    const fs::path folder = mount / of.relative_path();
    const auto limit = number_in(folder / files.limit), usage = number_in(folder / files.usage);
    if (limit && usage) {
      // Pages of files count as used, and make room before anything is refused; as for MemAvailable, those that were
      // read more than once, too: a checkpoint that was loaded before.
      std::uint64_t used = *usage;
      for (const char* key : files.cached) used -= std::min(used, number_of(folder / "memory.stat", key).value_or(0));
      least = std::min(least, *limit - std::min(used, *limit));
    }
    if (!of.has_relative_path()) return least;
  }
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::uint64_t available_memory_bytes(const fs::path& root) {
  std::uint64_t bytes = number_of(root / "proc/meminfo", "MemAvailable:").value_or(0) * 1024;
  // Lines are "number:controllers:path"; version 2 has number 0 and names no controllers.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string number, controllers, path;
       std::getline(groups, number, ':') && std::getline(groups, controllers, ':') && std::getline(groups, path);) {
    const fs::path mounts = root / "sys/fs/cgroup";
    if (controllers.empty()) bytes = std::min(bytes, left_in_group(mounts, path, version_2));
    if (("," + controllers + ",").find(",memory,") != std::string::npos)
      bytes = std::min(bytes, left_in_group(mounts / "memory", path, version_1));
  }
  return bytes;
}

}  // namespace shoal
