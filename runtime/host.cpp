#include "runtime/host.h"

#include <unistd.h>

#include <fstream>

namespace shoal {

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::uint64_t available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  for (std::uint64_t kb; meminfo >> key >> kb; std::getline(meminfo, unit))
    if (key == "MemAvailable:") return kb * 1024;
  return 0;
}

}  // namespace shoal
