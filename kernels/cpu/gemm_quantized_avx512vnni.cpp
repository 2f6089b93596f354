#include "kernels/cpu/vnni512.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) {
  const auto no_scratch = [](const Weights&) { return std::int64_t{0}; };
  set_quantized(table, direct_tile_width, direct_tile_width_8, pack_direct<kBlockSteps>, pack_direct<kFineSteps>,
                no_scratch, run_direct);
}

}  // namespace shoal::cpu
