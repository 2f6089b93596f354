#include "kernels/cpu/kernel_table.h"

#include "kernels/cpu/isa.h"

namespace shoal::cpu {
namespace {

KernelTable make_portable() {
  KernelTable t{};
  fill_gemm_portable(t);
  fill_quantized_portable(t);
  fill_vector_portable(t);
  return t;
}

KernelTable make_avx2() {
  KernelTable t{};
  fill_gemm_avx2(t);
  fill_quantized_avx2(t);
  fill_vector_avx2(t);
  return t;
}

KernelTable make_avxvnni() {
  KernelTable t = make_avx2();
  fill_quantized_avxvnni(t);
  return t;
}

KernelTable make_avx512bw() {
  KernelTable t{};
  fill_gemm_avx512(t);
  fill_quantized_avx512bw(t);
  fill_vector_avx512(t);
  return t;
}

KernelTable make_avx512() {
  KernelTable t = make_avx512bw();
  fill_quantized_avx512vnni(t);
  if (has_avx512_vbmi()) fill_quantized_avx512vnnivbmi(t);
  if (has_avx512_bf16()) fill_gemm_avx512bf16(t);
  if (has_avx512_bf16() && has_avx512_vbmi()) fill_gemm_avx512vbmi(t);
  if (has_avx512_bf16()) {
    fill_attention_avx512bf16(t);
    fill_prompt_attention_avx512bf16(t);
  }
  return t;
}

KernelTable make_amx() {
  KernelTable t = make_avx512();
  fill_gemm_amx(t);
  if (has_avx512_vbmi()) fill_quantized_amx(t);
  return t;
}

}  // namespace

const KernelTable& kernels_for(Isa isa) {
  switch (isa) {
    case Isa::portable: {
      static const KernelTable table = make_portable();
      return table;
    }
    case Isa::avx2: {
      static const KernelTable table = make_avx2();
      return table;
    }
    case Isa::avxvnni: {
      static const KernelTable table = make_avxvnni();
      return table;
    }
    case Isa::avx512bw: {
      static const KernelTable table = make_avx512bw();
      return table;
    }
    case Isa::avx512: {
      static const KernelTable table = make_avx512();
      return table;
    }
    case Isa::amx:
      break;
  }
  static const KernelTable table = make_amx();
  return table;
}

}  // namespace shoal::cpu
