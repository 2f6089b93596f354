#pragma once
// The CUDA runtime as host code calls it: NVIDIA's, or the emulation of the part that is used.
#ifdef SHOAL_CUDA_EMULATION
#include "base/cuda/emulation/runtime.h"
#else
#include <cuda_runtime_api.h>
#endif
