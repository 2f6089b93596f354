#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/cuda/memory.h"

namespace shoal {

/// NVIDIA's own dense FP8 product with the same scales (activations 1 x 128, weights 128 x 128; Hopper only), the peer
/// of linear_f8: [tokens, outputs] BF16 = x [tokens, cols] w [outputs, cols]^T. From libcublasLt.so.13 as the loader
/// finds it.
class CublasLtPeer {
 public:
  /// Workspace and handle; Error where there is no library.
  CublasLtPeer();
  ~CublasLtPeer();
  /// tokens and outputs are multiples of 4. Error where the library has no kernel for the shape on this GPU.
  void prepare(std::int64_t tokens, std::int64_t outputs, std::int64_t cols);
  void run(const void* x, const float* x_scale, const void* w, const float* w_scale, void* out, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal
