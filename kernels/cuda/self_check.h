#pragma once
#include <cstddef>
#include <string>

#include "base/cuda/runtime_api.h"

namespace shoal::cuda {

/// Fast kernels against the simple ones (linear.cu, attention.cu) or plain loops, on random data, in well under a
/// second: at start-up, so that one that a GPU computes otherwise than its tests did is not used. What is wrong, or
/// nothing.
std::string check_linear_mma(cudaStream_t stream);
std::string check_linear_packed_mma(cudaStream_t stream);
std::string check_linear_int4_mma(cudaStream_t stream);
std::string check_attention_mma(std::size_t shared_limit, cudaStream_t stream);
/// mla_expand() with attention_mma() or, on GPUs of sm_90 only, mla_prompt().
std::string check_mla_prompt(std::size_t shared_limit, bool wgmma, cudaStream_t stream);
/// Whether kernels that overlap (device.h) wait for each other, on GPUs of sm_90 and later; kernels_overlap is set.
std::string check_overlap(cudaStream_t stream);
/// On GPUs of sm_90 only.
std::string check_mla_wgmma(cudaStream_t stream);
std::string check_linear_f8(cudaStream_t stream);

}  // namespace shoal::cuda
