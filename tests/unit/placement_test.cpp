#include "planner/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

namespace shoal {
namespace {

TEST(SliceOf, CoversEverythingOnceInOrder) {
  for (int total : {0, 1, 5, 16, 100, 129280})
    for (int parts : {1, 2, 3, 7, 64})
      for (int unit : {1, 16, 128}) {
        std::int64_t next = 0, smallest = total, largest = 0;
        for (int p = 0; p < parts; ++p) {
          const Slice s = slice_of(total, parts, p, unit);
          EXPECT_EQ(s.first, next);
          EXPECT_GE(s.count, 0);
          if (s.first + s.count < total) {
            EXPECT_EQ((s.first + s.count) % unit, 0);
          }
          next = s.first + s.count;
          smallest = std::min(smallest, s.count);
          largest = std::max(largest, s.count);
        }
        EXPECT_EQ(next, total);
        EXPECT_LE(largest - smallest, 2 * unit - 1);
      }
}

TEST(HeadSlice, EveryQueryHeadOnceWithItsKvHead) {
  for (auto [heads, kv] : {std::pair{4, 2}, {8, 8}, {28, 4}, {64, 8}, {6, 2}, {12, 1}})
    for (int ranks = 1; ranks <= 9; ++ranks) {
      std::set<std::int64_t> seen;
      for (int r = 0; r < ranks; ++r) {
        const HeadSlice s = head_slice(heads, kv, ranks, r);
        if (s.heads.count == 0) continue;
        ASSERT_EQ(s.heads.count % s.kv_heads.count, 0);
        const std::int64_t share = s.heads.count / s.kv_heads.count;
        for (std::int64_t h = 0; h < s.heads.count; ++h) {
          EXPECT_TRUE(seen.insert(s.heads.first + h).second);
          EXPECT_EQ((s.heads.first + h) / (heads / kv), s.kv_heads.first + h / share)
              << heads << '/' << kv << '/' << ranks;
        }
      }
      EXPECT_EQ(static_cast<int>(seen.size()), heads);
    }
}

TEST(PlaceEvenly, EveryExpertOnce) {
  ModelConfig config;
  config.num_hidden_layers = 3;
  config.first_k_dense_replace = 1;
  for (int experts : {8, 16, 256})
    for (int ranks : {1, 2, 3, 4, 7, 300}) {
      config.n_routed_experts = experts;
      const Placement p = place_evenly(config, ranks);
      EXPECT_FALSE(p.tensor_parallel);
      EXPECT_TRUE(p.experts[0].empty());
      std::size_t total = 0;
      for (int r = 0; r < ranks; ++r) total += p.experts_on(1, r).size();
      EXPECT_EQ(total, static_cast<std::size_t>(experts));
    }
}

/// Whatever ranks go: experts with a rank left stay where they are and nowhere else, those without go where fewest are.
TEST(Placement, AmongThoseLeft) {
  std::mt19937 random(3);
  ModelConfig config;
  config.num_hidden_layers = 3;
  config.first_k_dense_replace = 1;
  config.n_routed_experts = 24;
  for (int round = 0; round < 200; ++round) {
    const int ranks = 2 + static_cast<int>(random() % 9);
    Placement before = place_evenly(config, ranks);
    if (round % 2 == 0) {  // replicas
      for (auto& layer : before.experts)
        for (auto& replicas : layer) {
          const int more = static_cast<int>(random() % static_cast<unsigned>(ranks));
          if (more == replicas[0].rank) continue;
          replicas = {{std::min(more, replicas[0].rank), 0.25f}, {std::max(more, replicas[0].rank), 0.75f}};
        }
    }
    std::vector<int> left;
    while (left.empty() || std::ssize(left) == ranks) {
      left.clear();
      for (int r = 0; r < ranks; ++r)
        if (random() % 3 > 0) left.push_back(r);
    }
    const Placement after = place_among(config, before, left);
    EXPECT_EQ(after.ranks, std::ssize(left));
    ASSERT_EQ(after.experts.size(), before.experts.size());
    for (std::size_t layer = 0; layer < after.experts.size(); ++layer) {
      ASSERT_EQ(after.experts[layer].size(), before.experts[layer].size());
      std::vector<int> kept(left.size()), held(left.size());
      for (std::size_t e = 0; e < after.experts[layer].size(); ++e) {
        std::set<int> then, now;
        float share = 0;
        for (const Replica& r : before.experts[layer][e])
          if (std::ranges::find(left, r.rank) != left.end()) then.insert(r.rank);
        for (const Replica& r : after.experts[layer][e]) {
          now.insert(left.at(static_cast<std::size_t>(r.rank)));
          share += r.share;
          ++held[static_cast<std::size_t>(r.rank)];
          kept[static_cast<std::size_t>(r.rank)] += !then.empty();
        }
        EXPECT_NEAR(share, 1, 1e-6);
        if (then.empty())
          EXPECT_EQ(now.size(), 1u);
        else
          EXPECT_EQ(now, then);
      }
      // Nobody was given one while another had fewer.
      for (std::size_t a = 0; a < held.size(); ++a)
        if (held[a] > kept[a]) {
          EXPECT_LE(held[a], *std::ranges::min_element(held) + 1);
        }
    }
  }
}

}  // namespace
}  // namespace shoal
