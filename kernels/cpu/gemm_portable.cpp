#include "kernels/cpu/simd_portable.h"
// The products need the operations above.
#include "kernels/cpu/gemm.inl"

namespace shoal::cpu {

void fill_gemm_portable(KernelTable& table) { fill_gemm(table); }

}  // namespace shoal::cpu
