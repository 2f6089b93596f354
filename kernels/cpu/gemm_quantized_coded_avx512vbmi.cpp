#include "kernels/cpu/coded512.h"

namespace shoal::cpu {

void fill_quantized_coded_avx512vbmi(KernelTable& table) {
  Gemm coded = direct_gemm();
  coded.scratch_bytes = quantized_scratch;
  coded.run = run_coded<Coded512>;
  set_gemm(table, WeightKind::quantized_coded, coded);
}

}  // namespace shoal::cpu
