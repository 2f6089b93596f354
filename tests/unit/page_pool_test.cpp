#include "runtime/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"

namespace shoal {
namespace {

TEST(PagePool, HandsOutEveryPageOnce) {
  PagePool pool(5);
  const auto some = pool.allocate(2), rest = pool.allocate(3);
  std::set<std::int32_t> all(some.begin(), some.end());
  all.insert(rest.begin(), rest.end());
  EXPECT_EQ(all, (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.used(), 5);
  EXPECT_TRUE(pool.allocate(0).empty());
}

TEST(PagePool, RefusesWhatItDoesNotHave) {
  PagePool pool(3);
  EXPECT_THROW(pool.allocate(4), Error);
  EXPECT_THROW(pool.allocate(-1), Error);
  EXPECT_EQ(pool.free(), 3);
  EXPECT_THROW(PagePool(-1), Error);
  EXPECT_EQ(PagePool(0).size(), 0);
}

TEST(PagePool, RefusesPagesThatAreNotInUseAndThenTakesNoneBack) {
  PagePool pool(4);
  const auto pages = pool.allocate(2);
  const std::vector<std::int32_t> twice{pages[0], pages[0]}, strange{pages[0], 4}, negative{pages[1], -1};
  for (const auto& wrong : {twice, strange, negative}) {
    EXPECT_THROW(pool.release(wrong), Error);
    EXPECT_EQ(pool.used(), 2);
  }
  pool.release(pages);
  EXPECT_EQ(pool.used(), 0);
  EXPECT_THROW(pool.release(pages), Error);
}

TEST(PagePool, NeverLosesOrSharesPages) {
  std::mt19937 random(1);
  PagePool pool(100);
  std::vector<std::vector<std::int32_t>> held;
  std::set<std::int32_t> in_use;
  for (int i = 0; i < 20000; ++i) {
    if (held.empty() || random() % 2) {
      const int n = static_cast<int>(random() % 10);
      if (n > pool.free()) continue;
      held.push_back(pool.allocate(n));
      for (const auto page : held.back()) EXPECT_TRUE(in_use.insert(page).second);
    } else {
      std::swap(held[random() % held.size()], held.back());
      for (const auto page : held.back()) in_use.erase(page);
      pool.release(held.back());
      held.pop_back();
    }
    ASSERT_EQ(pool.used(), static_cast<int>(in_use.size()));
  }
}

}  // namespace
}  // namespace shoal
