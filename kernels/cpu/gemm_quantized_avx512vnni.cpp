#include "kernels/cpu/vnni512.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) {
  const auto product = [](auto bytes, auto pack) {
    const auto scratch = [](const Weights&) { return std::int64_t{0}; };
    return Gemm{direct_tile_width, bytes, pack, scratch, run_direct};
  };
  table.gemm[int(WeightKind::quantized)] = table.gemm_bf16[int(WeightKind::quantized)] =
      product(quantized_tile_bytes<kBlockSteps>, pack_direct<kBlockSteps>);
  table.gemm[int(WeightKind::quantized_8)] = table.gemm_bf16[int(WeightKind::quantized_8)] =
      product(quantized_tile_bytes<kFineSteps>, pack_direct<kFineSteps>);
}

}  // namespace shoal::cpu
