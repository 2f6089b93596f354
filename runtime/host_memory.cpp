#include "runtime/host_memory.h"

#include <fstream>
#include <string>

namespace shoal {

std::uint64_t available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  for (std::uint64_t kb; meminfo >> key >> kb; std::getline(meminfo, unit))
    if (key == "MemAvailable:") return kb * 1024;
  return 0;
}

}  // namespace shoal
