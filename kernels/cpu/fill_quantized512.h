#pragma once
#include "kernels/cpu/vnni512_pairs.h"

namespace shoal::cpu {
namespace {

inline void fill_quantized512(KernelTable& table) {
  const Gemm direct = direct_gemm();
  Gemm planes = direct, fine = direct, coded = direct;
  planes.scratch_bytes = coded.scratch_bytes = quantized_scratch<Expanded512>;
  planes.run = run_planes;
  coded.run = run_quantized<Expanded512>;
  fine.tile_bytes = quantized_tile_bytes<kFineSteps>;
  fine.pack = pack_direct<kFineSteps>;
  set_gemm(table, WeightKind::quantized, planes);
  set_gemm(table, WeightKind::quantized_8, fine);
  set_gemm(table, WeightKind::quantized_coded, coded);
}

}  // namespace
}  // namespace shoal::cpu
