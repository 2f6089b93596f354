#include "runtime/query_ranges.h"

#include <gtest/gtest.h>

namespace shoal {
namespace {

/// Sequences' runs of queries as "first+count" with "!" behind those of prompts.
std::string ranges(const std::vector<int>& runs, std::optional<std::int64_t> at_least, std::int64_t seeing = 0,
                   int past = 99) {
  std::optional<PromptFrom> from;
  if (at_least) from = PromptFrom{*at_least, seeing};
  std::vector<std::int32_t> pages(runs.size());
  std::vector<AttentionQuery> queries;
  for (std::size_t i = 0; i < runs.size(); ++i)
    for (int t = 0; t < runs[i]; ++t) queries.push_back({&pages[i], past + 1 + t});
  std::string text;
  for (const QueryRange& r : query_ranges(queries, from))
    text += std::to_string(r.first) + "+" + std::to_string(r.count) + (r.prompt ? "! " : " ");
  return text;
}

TEST(QueryRanges, LongRunsGoByThemselves) {
  EXPECT_EQ(ranges({1, 1, 5, 1}, std::nullopt), "0+8 ");
  EXPECT_EQ(ranges({1, 1, 5, 1}, 6), "0+8 ");
  EXPECT_EQ(ranges({1, 1, 5, 1}, 5), "0+2 2+5! 7+1 ");
  EXPECT_EQ(ranges({6, 5, 1, 2, 9}, 5), "0+6! 6+5! 11+3 14+9! ");
  EXPECT_EQ(ranges({5}, 5), "0+5! ");
  EXPECT_EQ(ranges({}, 5), "");
  EXPECT_EQ(ranges({}, std::nullopt), "0+0 ");
}

TEST(QueryRanges, PositionsMustBeSeenByMany) {
  // 8 queries behind 92 positions: those are seen by all, the last by one.
  EXPECT_EQ(ranges({8}, 5, 7, 92), "0+8! ");
  EXPECT_EQ(ranges({8}, 5, 8, 92), "0+8 ");
  // Alone, position p is seen by 8 - p of them: 4.5 on average.
  EXPECT_EQ(ranges({8}, 5, 4, 0), "0+8! ");
  EXPECT_EQ(ranges({8}, 5, 5, 0), "0+8 ");
}

}  // namespace
}  // namespace shoal
