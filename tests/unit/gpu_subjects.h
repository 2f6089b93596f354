#pragma once
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {

/// For tests of what only the GPU's kernels have: this machine's GPU, and the emulated one.
inline auto gpus(Compute compute = Compute::f32) {
  std::vector<Subject> subjects{{.kind = Subject::Kind::gpu, .compute = compute}};
#ifdef SHOAL_HAS_CUDA_EMULATION
  subjects.push_back({.kind = Subject::Kind::emulated_gpu, .compute = compute});
#endif
  return testing::ValuesIn(subjects);
}

}  // namespace shoal::kernel_test
