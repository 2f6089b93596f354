#include "kernels/weight_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace shoal {
namespace {

TEST(WeightMemory, BlocksAreApartAndKeepWhatIsWritten) {
  std::mt19937 random(1);
  std::vector<std::pair<std::byte*, std::size_t>> blocks;
  const auto check = [](const auto& block) {
    for (std::size_t i = 0; i < block.second; i += 997)
      EXPECT_EQ(block.first[i], std::byte(block.second % 251)) << block.second;
  };
  for (int round = 0; round < 400; ++round) {
    if (blocks.size() > 20 || (!blocks.empty() && random() % 3 == 0)) {
      const std::size_t i = random() % blocks.size();
      check(blocks[i]);
      free_weights(blocks[i].first);
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
      continue;
    }
    // Few sizes, so that freed blocks are taken again; one of them larger than what is shared.
    const std::size_t bytes = random() % 20 == 0 ? (std::size_t{17} << 20) + 3 : 1000 + random() % 5 * 300'001;
    std::byte* const p = allocate_weights(bytes);
    ASSERT_NE(p, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 64, 0u);
    std::memset(p, static_cast<int>(bytes % 251), bytes);
    blocks.emplace_back(p, bytes);
  }
  for (const auto& block : blocks) {
    check(block);
    free_weights(block.first);
  }
}

TEST(WeightMemory, ServesThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 200; ++i) {
        const std::size_t bytes = 4096 + static_cast<std::size_t>(i % 7) * 640;
        std::byte* const p = allocate_weights(bytes);
        std::memset(p, t, bytes);
        EXPECT_EQ(p[bytes - 1], std::byte(t));
        free_weights(p);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace
}  // namespace shoal
