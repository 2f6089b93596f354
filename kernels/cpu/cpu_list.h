#pragma once
#include <vector>

#include "kernels/backend.h"

namespace shoal::cpu {

/// The logical CPUs this rank's threads should run on, one each: of those the process may use one for each core, shared
/// among the ranks of the host that may use the same ones. At least one.
std::vector<int> cpus_of_rank(const CpuOptions& options);

}  // namespace shoal::cpu
