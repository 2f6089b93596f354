#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/convert_avx512.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_quantized_amx.inl"

namespace shoal::cpu {

void fill_gemm_amx(KernelTable& table) {
  fill_amx<HardwareTiles>(table);
  fill_amx_quantized<HardwareTiles, Convert512>(table);
}

}  // namespace shoal::cpu
