#pragma once
#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

/// The tile of this block, number blockIdx.x. Of a list that a kernel made, those behind the last have no rows.
__device__ __forceinline__ Tile tile_of_block(const LinearCall& call) {
  if (call.tiles != nullptr) return call.tiles[blockIdx.x];
  const int of_group = call.n_tiles / call.groups, n = static_cast<int>(blockIdx.x);
  const int first = n % of_group * call.tile_rows;
  return {n / of_group, first, min(call.tile_rows, static_cast<int>(call.rows) - first)};
}

/// Where row `i` of a tile comes from.
__device__ __forceinline__ std::int64_t source_row(const LinearCall& call, std::int64_t i) {
  return call.row == nullptr ? i : call.row[i];
}

}  // namespace shoal::cuda
