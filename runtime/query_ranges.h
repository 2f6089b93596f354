#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace shoal {

/// Queries first .. first + count of a step.
struct QueryRange {
  std::int64_t first, count;
  bool prompt;  // all of one sequence, and many
};

/// Cuts a step's queries where some neighbours of one sequence, in ascending order, are worth the prompt form: those by
/// themselves, what lies between them together. Without `prompt_from` all are one range.
inline std::vector<QueryRange> query_ranges(std::span<const AttentionQuery> queries,
                                            std::optional<PromptFrom> prompt_from) {
  const auto n = static_cast<std::int64_t>(queries.size());
  std::vector<QueryRange> ranges;
  if (!prompt_from) {
    ranges.push_back({0, n, false});
    return ranges;
  }
  for (std::int64_t first = 0, next = 0; first < n; first = next) {
    const auto* pages = queries[static_cast<std::size_t>(first)].pages;
    std::int64_t seen = 0, positions = 0;
    for (; next < n && queries[static_cast<std::size_t>(next)].pages == pages; ++next) {
      positions = queries[static_cast<std::size_t>(next)].length;
      seen += positions;
    }
    const bool prompt = next - first >= prompt_from->queries && seen >= prompt_from->seeing * positions;
    if (!prompt && !ranges.empty() && !ranges.back().prompt)
      ranges.back().count += next - first;
    else
      ranges.push_back({first, next - first, prompt});
  }
  return ranges;
}

}  // namespace shoal
