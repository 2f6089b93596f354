#include "kernels/cpu/fill_quantized512.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) { fill_quantized512(table); }

}  // namespace shoal::cpu
