#include "kernels/cpu/vnni512.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) {
  table.gemm[int(WeightKind::quantized)] = table.gemm_bf16[int(WeightKind::quantized)] = {
      direct_tile_width, quantized_tile_bytes, pack_direct, [](const Weights&) { return std::int64_t{0}; }, run_direct};
}

}  // namespace shoal::cpu
