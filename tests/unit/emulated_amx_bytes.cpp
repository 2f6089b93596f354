// AMX products of bytes over emulated tiles, compiled for VNNI alone: amx_emulation_test.cpp calls them where it is
// there.
#include "kernels/cpu/amx_emulation.h"
// The products need the instructions above.
#include "kernels/cpu/gemm_quantized_amx.inl"

namespace shoal::kernel_test {
namespace {

struct RunExpanded {
  using Expand = cpu::Expanded512;
  template <class Isa>
  static constexpr auto run = cpu::run_quantized<Isa>;
};

}  // namespace

void fill_quantized_emulated(cpu::KernelTable& table) {
  cpu::fill_quantized_tiles<cpu::EmulatedTiles, RunExpanded>(table);
}

}  // namespace shoal::kernel_test
