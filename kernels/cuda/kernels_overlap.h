#pragma once
#include <atomic>

namespace shoal::cuda {

/// Whether kernels are launched so that each may begin before the one before it has ended (device.h); off where the
/// GPU's check at the start finds that they do not wait as they should (self_check.h).
inline std::atomic<bool> kernels_overlap{false};

}  // namespace shoal::cuda
