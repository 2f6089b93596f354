#pragma once
#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

/// Of token t, in its rank's part.
__device__ __forceinline__ const SlotEntry* entries_of_token(const std::byte* part, const Slots& s, std::int64_t t) {
  return reinterpret_cast<const SlotEntry*>(part + s.entries_at(t));
}
/// Of the i-th of all slots.
__device__ __forceinline__ const SlotEntry* entries_of(const std::byte* in, const Slots& s, std::int64_t i) {
  return entries_of_token(in + s.part_at(static_cast<int>(i / s.of_rank)), s, i % s.of_rank);
}
__device__ __forceinline__ bool is_here(const Slots& s, const SlotEntry& entry) {
  return entry.place >= 0 && rank_of(entry.place) == s.rank;
}

}  // namespace shoal::cuda
