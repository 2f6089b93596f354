#include "kernels/cpu/vnni512_expanded.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) {
  const Gemm direct = direct_gemm();
  Gemm fine = direct, coded = direct;
  fine.tile_width = direct_tile_width_8;
  fine.tile_bytes = quantized_tile_bytes<kFineSteps>;
  fine.pack = pack_direct<kFineSteps>;
  coded.scratch_bytes = quantized_scratch;
  coded.run = run_quantized<Expanded512>;
  set_gemm(table, WeightKind::quantized, direct);
  set_gemm(table, WeightKind::quantized_8, fine);
  set_gemm(table, WeightKind::quantized_coded, coded);
}

}  // namespace shoal::cpu
