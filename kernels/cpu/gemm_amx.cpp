#include "kernels/cpu/kernel_table.h"

namespace shoal::cpu {

void fill_gemm_amx(KernelTable&) {}

}  // namespace shoal::cpu
