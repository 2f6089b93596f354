#pragma once
#include "base/kv_type.h"
#include "kernels/cuda/convert.h"

// Elements of a KV cache row as base/kv_type.h lays them out.
namespace shoal::cuda {

/// Element `column` of a row of `width` elements.
__device__ __forceinline__ float load_kv(KvType type, const std::byte* row, int column, int width) {
  if (type == KvType::f32) return reinterpret_cast<const float*>(row)[column];
  if (type == KvType::bf16) return widen_bf16(reinterpret_cast<const std::uint16_t*>(row)[column]);
  const float scale = widen_bf16(reinterpret_cast<const std::uint16_t*>(row)[column / kKvGroup]);
  const std::byte value = row[2 * kv_groups(width) + column];
  return scale * (type == KvType::fp8 ? widen_f8(static_cast<unsigned>(value))
                                      : static_cast<float>(static_cast<std::int8_t>(value)));
}

}  // namespace shoal::cuda
