#pragma once
#include "base/cuda/runtime_api.h"
#include "base/error.h"

namespace shoal::cuda {

/// Throws Error with CUDA's own words.
inline void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) fail("{}: {}", what, cudaGetErrorString(code));
}

}  // namespace shoal::cuda
