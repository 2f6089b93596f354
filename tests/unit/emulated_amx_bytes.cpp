// AMX products of bytes over emulated tiles, compiled for VNNI alone: amx_emulation_test.cpp calls them where it is
// there.
#include "kernels/cpu/amx_emulation.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_quantized_amx.inl"

namespace shoal::kernel_test {

void fill_quantized_emulated(cpu::KernelTable& table) {
  cpu::fill_quantized_tiles<cpu::EmulatedTiles, cpu::RunExpanded>(table);
}

}  // namespace shoal::kernel_test
