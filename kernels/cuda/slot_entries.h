#pragma once
#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

__device__ __forceinline__ const SlotEntry* entries_of(const std::byte* in, const Slots& s, std::int64_t slot) {
  return reinterpret_cast<const SlotEntry*>(in + s.place(slot) * s.slot_bytes() + s.entries_at());
}
__device__ __forceinline__ bool is_here(const Slots& s, const SlotEntry& entry) {
  return entry.place >= 0 && rank_of(entry.place) == s.rank;
}

}  // namespace shoal::cuda
