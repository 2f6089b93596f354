#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/operations.h"

namespace shoal::cuda {

/// The (row, expert) pairs of an ExpertBatch sorted by expert, so that each expert's weights are read once: pair p of
/// the sorted order is for row row[p]; list entry e of the batch became pair place[e]; an expert's pairs are one range.
/// Pure arithmetic.
struct ExpertPlan {
  std::vector<std::int32_t> row;    // [pairs]
  std::vector<std::int32_t> place;  // [pairs]
  std::vector<Tile> ranges;         // of the experts that have any, ascending; group: the expert
};

/// first [rows + 1] into expert; experts of the rank: 0 .. n_experts - 1.
ExpertPlan plan_experts(std::span<const std::int32_t> first, std::span<const std::int32_t> expert, int n_experts);

/// The ranges cut into tiles of up to `rows`.
std::vector<Tile> cut_into_tiles(std::span<const Tile> ranges, int rows);

}  // namespace shoal::cuda
