#pragma once
#include "kernels/cuda/operations.h"
#include "kernels/token_exchange.h"

namespace shoal::cuda {

/// How rows travel to experts. `f8_rows`: experts of E4M3 round them to it, so they may travel as such.
inline Wire wire_there(const ExchangeShape& shape, bool f8_rows) {
  if (f8_rows && shape.f8_experts) return Wire::f8;
  return shape.bf16_wire ? Wire::bf16 : Wire::f32;
}
/// And answers.
inline Wire wire_back(const ExchangeShape& shape) { return shape.bf16_wire ? Wire::bf16 : Wire::f32; }

}  // namespace shoal::cuda
