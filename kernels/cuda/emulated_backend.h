#pragma once
#include "kernels/cuda/cuda_backend.h"

namespace shoal {

/// The GPU's back end with its kernels run by the CPU (base/cuda/emulation): for tests.
std::unique_ptr<Backend> make_emulated_cuda_backend(const CudaOptions& options = {});

}  // namespace shoal
