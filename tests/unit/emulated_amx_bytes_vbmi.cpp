// As emulated_amx_bytes.cpp, with the look-ups of bytes that CPUs with AMX have.
#include "kernels/cpu/amx_emulation.h"
// The products need the instructions above.
#include "kernels/cpu/coded512.h"
#include "kernels/cpu/gemm_quantized_amx.inl"

namespace shoal::kernel_test {

void fill_quantized_emulated_vbmi(cpu::KernelTable& table) {
  cpu::fill_quantized_tiles<cpu::EmulatedTiles, cpu::RunCoded>(table);
}

}  // namespace shoal::kernel_test
