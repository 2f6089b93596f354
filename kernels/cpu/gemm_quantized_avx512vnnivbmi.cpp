#include "kernels/cpu/coded512.h"

namespace shoal::cpu {

/// Only the product: rows stay packed by the very functions that pack them for other kinds, so that one packing serves
/// matrices of both.
void fill_quantized_avx512vnnivbmi(KernelTable& table) {
  constexpr int kKind = int(WeightKind::quantized_coded);
  table.gemm[kKind].run = table.gemm_bf16[kKind].run = run_coded<Coded512>;
}

}  // namespace shoal::cpu
