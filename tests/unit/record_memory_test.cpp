#include "collectives/record_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace shoal {
namespace {

/// Writes records of these sizes and looks at all of them when the last is there.
void fill_and_check(RecordMemory<>& memory, const std::vector<std::size_t>& sizes) {
  std::vector<std::byte*> records;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    records.push_back(memory.take(sizes[i]));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(records.back()) % 64, 0u);
    std::fill_n(records.back(), sizes[i], static_cast<std::byte>(i + 1));  // an empty one may be null
  }
  for (std::size_t i = 0; i < sizes.size(); ++i)
    for (std::size_t at = 0; at < sizes[i]; ++at) ASSERT_EQ(records[i][at], static_cast<std::byte>(i + 1));
  memory.clear();
}

TEST(RecordMemory, KeepsWhatTheLongestExchangeTook) {
  RecordMemory<> memory;
  for (std::size_t peer = 0; peer < 20; ++peer) {
    std::vector<std::size_t> sizes(20, 10);
    sizes[peer] = 10000;
    fill_and_check(memory, sizes);
  }
  EXPECT_GE(memory.capacity(), 10000 + 19 * 64u);
  EXPECT_LE(memory.capacity(), 1.5 * (10048 + 19 * 64));
}

TEST(RecordMemory, IsOneBlockOnceItHasGrown) {
  RecordMemory<> memory;
  fill_and_check(memory, {});
  fill_and_check(memory, {100, 5000, 0, 1});
  const std::byte* const block = memory.take(100);
  EXPECT_EQ(memory.take(5000), block + 128);
  EXPECT_EQ(memory.take(0), block + 128 + 5056);
  EXPECT_EQ(memory.take(1), block + 128 + 5056);
  memory.clear();
  fill_and_check(memory, {7000, 1, 80, 9000});
  fill_and_check(memory, {1, 1});
  EXPECT_GE(memory.capacity(), 7040u + 64 + 128 + 9000);
}

}  // namespace
}  // namespace shoal
