#pragma once
#include <memory>

#include "kernels/backend.h"

namespace shoal {

/// Every operation as plain loops that read like its definition, summed in double precision: what the optimised ones
/// are tested against. Slow. With Compute::bf16 the activations of products with BF16 and F8 weights are rounded to
/// BF16; with Compute::fp8 those with F8 weights to E4M3, 128 columns with a scale, the largest becoming 448. Quantized
/// weights meet activations rounded to 8 bits, as everywhere: `byte_columns` of them with one scale, 128 on CPUs and 32
/// on GPUs (32 everywhere where weights have 8 bits). But with `bf16_meets_int4` and Compute::bf16 activations are
/// rounded to BF16 for codes of four bits that mean whole numbers of one scale, as on GPUs.
std::unique_ptr<Backend> make_reference_backend(Compute compute = Compute::f32, int byte_columns = 128,
                                                bool bf16_meets_int4 = false);

}  // namespace shoal
