// The GPU back end's arithmetic that needs no GPU: which pair of row and expert goes where, and where a weight lies.
#include "kernels/cuda/expert_plan.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>

namespace shoal::cuda {
namespace {

TEST(ExpertPlan, EveryPairHasOnePlaceAmongItsExpertsPairs) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    const int n_experts = 1 + static_cast<int>(random() % 9);
    std::vector<std::int32_t> first{0}, expert;
    for (std::size_t rows = random() % 40; rows > 0; --rows) {
      for (std::int32_t e = 0; e < n_experts; ++e)
        if (random() % 3 == 0) expert.push_back(e);
      first.push_back(static_cast<std::int32_t>(expert.size()));
    }
    const ExpertPlan plan = plan_experts(first, expert, n_experts);
    std::vector<std::int32_t> expert_of(expert.size(), -1);
    for (const Tile& range : plan.ranges) {
      EXPECT_GT(range.count, 0) << "an expert that nobody wants has no range";
      for (std::int32_t p = range.first; p < range.first + range.count; ++p)
        expert_of.at(static_cast<std::size_t>(p)) = range.group;
    }
    std::set<std::int32_t> places;
    for (std::size_t r = 0; r + 1 < first.size(); ++r)
      for (auto e = static_cast<std::size_t>(first[r]); e < static_cast<std::size_t>(first[r + 1]); ++e) {
        const auto place = static_cast<std::size_t>(plan.place[e]);
        EXPECT_TRUE(places.insert(plan.place[e]).second);
        EXPECT_EQ(plan.row[place], static_cast<std::int32_t>(r));
        EXPECT_EQ(expert_of[place], expert[e]);
      }
    for (const int rows : {8, 16, 64}) {
      std::vector<std::int32_t> covered(expert.size(), -1);
      for (const Tile& tile : cut_into_tiles(plan.ranges, rows)) {
        EXPECT_LE(tile.count, rows);
        for (std::int32_t p = tile.first; p < tile.first + tile.count; ++p)
          EXPECT_EQ(std::exchange(covered.at(static_cast<std::size_t>(p)), tile.group), -1) << "tiles overlap";
      }
      EXPECT_EQ(covered, expert_of);
    }
  }
}

TEST(F8Tiles, EveryElementHasItsOwnByteAndChunksStayTogether) {
  const std::int64_t col_tiles = 3;
  std::set<std::int64_t> taken;
  for (std::int64_t row = 0; row < 2 * kF8Tile; ++row)
    for (std::int64_t col = 0; col < col_tiles * kF8Tile; ++col) {
      const std::int64_t at = f8_offset(row, col, col_tiles);
      EXPECT_TRUE(taken.insert(at).second);
      EXPECT_EQ(at / kF8TileBytes, row / kF8Tile * col_tiles + col / kF8Tile);
      if (col % 16 > 0) {
        EXPECT_EQ(at, f8_offset(row, col - 1, col_tiles) + 1);
      }
    }
  EXPECT_EQ(*taken.rbegin() + 1, std::ssize(taken));
}

}  // namespace
}  // namespace shoal::cuda
