#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/coded512.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_quantized_amx.inl"

namespace shoal::cpu {

void fill_quantized_amx(KernelTable& table) { fill_quantized_tiles<HardwareTiles, RunCoded>(table); }

}  // namespace shoal::cpu
