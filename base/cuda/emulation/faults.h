#pragma once
#include "base/cuda/emulation/runtime.h"

namespace shoal::emulation {

/// As if a launch of this OS thread had failed: cudaGetLastError() says so once.
void set_last_error(cudaError_t error);

}  // namespace shoal::emulation
