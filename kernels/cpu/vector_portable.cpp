#include "kernels/cpu/simd_portable.h"
// The operations on rows and attention need those above.
#include "kernels/cpu/vector_math.inl"
// (in this order)
#include "kernels/cpu/attention.inl"
#include "kernels/cpu/prompt_attention.inl"
#include "kernels/cpu/rows.inl"

namespace shoal::cpu {

void fill_vector_portable(KernelTable& table) {
  fill_rows(table);
  fill_attention(table);
  fill_prompt_attention<FloatPrompt>(table);
}

}  // namespace shoal::cpu
