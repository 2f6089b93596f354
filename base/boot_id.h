#pragma once
#include <fstream>
#include <string>

namespace shoal {

/// The same for all processes of a host, whatever containers they are in, and for no other host; empty where the system
/// does not say.
inline std::string boot_id() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id;
}

}  // namespace shoal
