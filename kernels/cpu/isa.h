#pragma once
#include "kernels/backend.h"

namespace shoal::cpu {

/// Whether this CPU has dot products of bytes (AVX512_VNNI).
bool has_avx512_vnni();

/// Whether this CPU has BF16 dot products (AVX512_BF16), which not every AVX-512 machine does.
bool has_avx512_bf16();

/// Whether this CPU looks bytes up in tables of 128 (AVX512_VBMI).
bool has_avx512_vbmi();

/// Whether kernels of this kind run here. For Isa::amx this also asks Linux to let the process use tiles.
bool supports(Isa isa);

/// The instruction set of a name as in CpuOptions::isa; throws Error if it is unknown or this machine lacks it.
Isa choose_isa(const std::string& name);

}  // namespace shoal::cpu
