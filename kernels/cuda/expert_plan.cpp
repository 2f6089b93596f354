#include "kernels/cuda/expert_plan.h"

#include <algorithm>

namespace shoal::cuda {

ExpertPlan plan_experts(std::span<const std::int32_t> first, std::span<const std::int32_t> expert, int n_experts) {
  std::vector<std::int32_t> begin(static_cast<std::size_t>(n_experts) + 1);
  for (const std::int32_t e : expert) ++begin[static_cast<std::size_t>(e) + 1];
  for (std::size_t e = 1; e < begin.size(); ++e) begin[e] += begin[e - 1];

  ExpertPlan plan;
  for (std::int32_t e = 0; e < n_experts; ++e) {
    const std::int32_t at = begin[static_cast<std::size_t>(e)], end = begin[static_cast<std::size_t>(e) + 1];
    if (at < end) plan.ranges.push_back({e, at, end - at});
  }
  plan.row.resize(expert.size());
  plan.place.resize(expert.size());
  for (std::size_t r = 0; r + 1 < first.size(); ++r)
    for (auto i = static_cast<std::size_t>(first[r]); i < static_cast<std::size_t>(first[r + 1]); ++i) {
      const std::int32_t pair = begin[static_cast<std::size_t>(expert[i])]++;
      plan.place[i] = pair;
      plan.row[static_cast<std::size_t>(pair)] = static_cast<std::int32_t>(r);
    }
  return plan;
}

std::vector<Tile> cut_into_tiles(std::span<const Tile> ranges, int rows) {
  std::vector<Tile> tiles;
  for (const Tile& range : ranges)
    for (std::int32_t at = 0; at < range.count; at += rows)
      tiles.push_back({range.group, range.first + at, std::min(rows, range.count - at)});
  return tiles;
}

}  // namespace shoal::cuda
