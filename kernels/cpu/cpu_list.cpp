#include "kernels/cpu/cpu_list.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <fstream>

namespace shoal::cpu {
namespace {

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(static_cast<std::size_t>(i), &set)) cpus.push_back(i);
  }
  return cpus;
}

/// The lowest-numbered logical CPU of the core that `cpu` belongs to; `cpu` itself where Linux does not say.
int first_of_core(int cpu) {
  std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
  int first = cpu;
  file >> first;  // the list begins with the lowest
  return file ? first : cpu;
}

/// One of each core's allowed hardware threads: the vector units they share gain nothing from a second.
std::vector<int> one_for_each_core(const std::vector<int>& cpus) {
  std::vector<int> cores, chosen;
  for (const int cpu : cpus) {
    const int core = first_of_core(cpu);
    if (std::find(cores.begin(), cores.end(), core) != cores.end()) continue;
    cores.push_back(core);
    chosen.push_back(cpu);
  }
  return chosen;
}

}  // namespace

std::vector<int> cpus_of_rank(const CpuOptions& options) {
  const std::vector<int> allowed = allowed_cpus();
  const std::vector<int> cores = one_for_each_core(allowed);
  // A launcher that binds ranks to parts of the machine leaves each a part of the CPUs; that many ranks share this
  // part.
  const long online = std::max(1L, sysconf(_SC_NPROCESSORS_ONLN));
  const double part = static_cast<double>(allowed.size()) / static_cast<double>(online);
  const int sharers = std::max(1, static_cast<int>(options.local_ranks * std::min(part, 1.0) + 0.5));
  const int place = options.local_rank % sharers;
  const auto n = static_cast<int>(cores.size());
  if (n <= sharers) return {cores[static_cast<std::size_t>(place % n)]};
  const int begin = n * place / sharers, end = n * (place + 1) / sharers;
  return {cores.begin() + begin, cores.begin() + end};
}

}  // namespace shoal::cpu
