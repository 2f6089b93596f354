#include "runtime/page_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"

namespace shoal {
namespace {

/// What is kept, where it is kept in this pool.
const PageContents::Kept* find(const PagePool& pool, PagePool::Block after, const std::vector<std::int32_t>& tokens,
                               const char* salt = "") {
  const PageContents::Kept* kept = pool.contents().find(after, tokens, salt);
  return kept && pool.page_of(*kept) ? kept : nullptr;
}

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

TEST(PagePool, KeepsContentsUntilTheRoomIsNeeded) {
  PagePool pool(4);
  const std::vector<std::int32_t> a{1, 2}, b{3, 4}, c{5, 6};
  const auto pages = pool.allocate(3);
  const auto after_a = pool.keep(PagePool::kNoBlock, a, "", pages[0]);
  const auto after_b = pool.keep(after_a, b, "", pages[1]);
  EXPECT_FALSE(find(pool, PagePool::kNoBlock, b)) << "b follows a";
  EXPECT_FALSE(find(pool, PagePool::kNoBlock, a, "salt"));
  EXPECT_EQ(find(pool, after_a, b)->block, after_b);
  EXPECT_EQ(pool.page_of(*find(pool, after_a, b)), pages[1]);
  EXPECT_THROW(pool.share(pages[2]), Error);
  EXPECT_THROW(pool.keep(after_b, c, "", pages[1]), Error);

  pool.share(pages[0]);
  pool.release(pages);
  EXPECT_EQ(pool.used(), 1);
  EXPECT_EQ(pool.free(), 3);
  EXPECT_THROW(pool.keep(after_b, c, "", pages[2]), Error) << "nobody owns it";
  pool.allocate(2);  // the two that hold nothing
  EXPECT_TRUE(find(pool, after_a, b));
  EXPECT_EQ(pool.allocate(1), std::vector{pages[1]});
  EXPECT_FALSE(find(pool, after_a, b));
  EXPECT_TRUE(find(pool, PagePool::kNoBlock, a)) << "it has an owner";
  EXPECT_THROW(pool.allocate(1), Error);
}

TEST(PagePool, DropsWhatWasLeftLongestAgoAndEndsBeforeBeginnings) {
  PagePool pool(6);
  const std::vector<std::int32_t> t{7};
  std::vector<std::vector<std::int32_t>> texts;
  std::vector<PagePool::Block> first;
  for (const char* salt : {"x", "y", "z"}) {
    texts.push_back(pool.allocate(2));
    first.push_back(pool.keep(PagePool::kNoBlock, t, salt, texts.back()[0]));
    pool.keep(first.back(), t, salt, texts.back()[1]);
  }
  for (const int i : {1, 0, 2}) pool.release(texts[static_cast<std::size_t>(i)]);
  pool.share(texts[1][0]);  // in use again, and left last
  pool.release(std::span(texts[1]).first(1));
  std::vector<std::int32_t> order;
  for (int i = 0; i < 6; ++i) order.push_back(pool.allocate(1)[0]);
  EXPECT_EQ(order, (std::vector{texts[1][1], texts[0][1], texts[0][0], texts[2][1], texts[2][0], texts[1][0]}));
}

TEST(PagePool, OneContentHasOnePage) {
  PagePool pool(3);
  const std::vector<std::int32_t> a{1, 2};
  const auto pages = pool.allocate(2);
  const auto block = pool.keep(PagePool::kNoBlock, a, "", pages[0]);
  EXPECT_EQ(pool.keep(PagePool::kNoBlock, a, "", pages[1]), block);
  EXPECT_EQ(pool.page_of(*find(pool, PagePool::kNoBlock, a)), pages[0]);
  pool.release(pages);
  pool.allocate(3);
  const auto again = find(pool, PagePool::kNoBlock, a);
  EXPECT_FALSE(again);
}

TEST(PagePool, PoolsKnowOfOneAnothersContents) {
  const auto contents = std::make_shared<PageContents>();
  PagePool left(1, contents, 0), right(3, contents, 1);
  const std::vector<std::int32_t> a{1};
  const auto pages = right.allocate(2);
  const auto block = right.keep(PagePool::kNoBlock, a, "", pages[1]);
  EXPECT_FALSE(find(left, PagePool::kNoBlock, a));
  EXPECT_EQ(left.keep(PagePool::kNoBlock, a, "", left.allocate(1)[0]), block);
  EXPECT_EQ(left.page_of(*find(left, PagePool::kNoBlock, a)), 0);
  EXPECT_EQ(right.page_of(*find(right, PagePool::kNoBlock, a)), pages[1]);

  left.release(std::vector{0});
  left.allocate(1);
  EXPECT_FALSE(find(left, PagePool::kNoBlock, a));
  EXPECT_TRUE(find(right, PagePool::kNoBlock, a)) << "what one drops the other keeps";
  EXPECT_EQ(left.keep(PagePool::kNoBlock, a, "", 0), block);
  right.release(pages);
  right.allocate(3);
  EXPECT_EQ(find(left, PagePool::kNoBlock, a)->places.size(), 1u);
}

TEST(PagePool, ABlockThatWasDroppedNeverComesBack) {
  PagePool pool(2);
  const std::vector<std::int32_t> a{1}, b{2};
  auto pages = pool.allocate(1);
  const auto before = pool.keep(PagePool::kNoBlock, a, "", pages[0]);
  pool.release(pages);
  pages = pool.allocate(2);
  EXPECT_NE(pool.keep(PagePool::kNoBlock, a, "", pages[0]), before);
  EXPECT_FALSE(find(pool, before, b));
}

}  // namespace
}  // namespace shoal
