#include "kernels/cpu/simd_avx2.h"
// The products need the operations above.
#include "kernels/cpu/gemm.inl"

namespace shoal::cpu {

void fill_gemm_avx2(KernelTable& table) { fill_gemm(table); }

}  // namespace shoal::cpu
