#include "kernels/cpu/vnni512.h"

namespace shoal::cpu {

void fill_quantized_avx512vnni(KernelTable& table) { fill_quantized<Vnni512>(table); }

}  // namespace shoal::cpu
