#include "kernels/cpu/amx_tile.h"
#include "kernels/cpu/convert_avx512.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_amx.inl"

namespace shoal::cpu {

void fill_gemm_amx(KernelTable& table) { fill_amx<HardwareTiles, Convert512>(table); }

}  // namespace shoal::cpu
