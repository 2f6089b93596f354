#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "base/error.h"

namespace shoal {
namespace cpu {
namespace {

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros where the leaf does not exist
  return r;
}

bool bit(std::uint32_t word, int n) { return (word >> n) & 1u; }

/// Which register files the operating system saves (XCR0): an instruction set whose registers it does not is unusable.
std::uint64_t saved_state() {
  if (!bit(cpuid(1).ecx, 27)) return 0;  // OSXSAVE
  std::uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

constexpr std::uint64_t kSavesYmm = 0x6, kSavesZmm = 0xe6, kSavesTiles = 0x60000;

bool saves(std::uint64_t state) { return (saved_state() & state) == state; }

bool has_avx2() {
  const std::uint32_t basic = cpuid(1).ecx, extended = cpuid(7).ebx;
  const bool fma = bit(basic, 12), f16c = bit(basic, 29), avx = bit(basic, 28);
  const bool avx2 = bit(extended, 5), bmi2 = bit(extended, 8);
  return fma && f16c && avx && avx2 && bmi2 && saves(kSavesYmm);
}

bool has_avx_vnni() { return has_avx2() && cpuid(7).eax >= 1 && bit(cpuid(7, 1).eax, 4); }

bool has_avx512() {
  const std::uint32_t extended = cpuid(7).ebx;
  const bool f = bit(extended, 16), dq = bit(extended, 17), bw = bit(extended, 30), vl = bit(extended, 31);
  return has_avx2() && f && dq && bw && vl && saves(kSavesZmm);
}

/// Linux hands out the 8 KB of tile state only on request (Documentation/arch/x86/xstate.rst).
bool tiles_permitted() {
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

bool has_amx() {
  const std::uint32_t extended = cpuid(7).edx;
  const bool bf16 = bit(extended, 22), tile = bit(extended, 24), int8 = bit(extended, 25);
  return has_avx512() && bf16 && tile && int8 && saves(kSavesTiles) && tiles_permitted();
}

}  // namespace

bool has_avx512_vnni() { return has_avx512() && bit(cpuid(7).ecx, 11); }

bool has_avx512_bf16() { return has_avx512() && cpuid(7).eax >= 1 && bit(cpuid(7, 1).eax, 5); }

bool has_avx512_vbmi() { return has_avx512() && bit(cpuid(7).ecx, 1); }

bool supports(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return has_avx2();
    case Isa::avxvnni:
      return has_avx_vnni();
    case Isa::avx512bw:
      return has_avx512();
    case Isa::avx512:
      return has_avx512_vnni();
    case Isa::amx:
      return has_amx() && has_avx512_vnni();
  }
  return false;
}

Isa choose_isa(const std::string& name) {
  if (name == "auto") return detect_isa();
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avxvnni, Isa::avx512bw, Isa::avx512, Isa::amx}) {
    if (name != name_of(isa)) continue;
    if (!supports(isa))
      throw Error(fmt::format("--isa: this CPU (or its operating system) has no {}; the best it has is {}", name,
                              name_of(detect_isa())),
                  ExitCode::usage);
    return isa;
  }
  throw Error(
      fmt::format(
          "--isa: unknown instruction set '{}'; it takes auto, portable, avx2, avxvnni, avx512bw, avx512 or amx", name),
      ExitCode::usage);
}

}  // namespace cpu

Isa detect_isa() {
  for (const Isa isa : {Isa::amx, Isa::avx512, Isa::avx512bw, Isa::avxvnni, Isa::avx2}) {
    if (cpu::supports(isa)) return isa;
  }
  return Isa::portable;
}

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512bw:
      return "avx512bw";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
  }
  return "?";
}

}  // namespace shoal
