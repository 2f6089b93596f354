#pragma once
#include <memory>

#include "kernels/backend.h"

namespace shoal {

/// Every operation as plain loops that read like its definition, summed in double precision: what the optimised ones
/// are tested against. Slow. With Compute::bf16 the activations of products with BF16 and F8 weights are rounded to
/// BF16; with Compute::fp8 those with F8 weights to E4M3, 128 columns with a scale, the largest becoming 448. Quantized
/// weights meet activations rounded to 8 bits, as everywhere.
std::unique_ptr<Backend> make_reference_backend(Compute compute = Compute::f32);

}  // namespace shoal
