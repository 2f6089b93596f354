#include "kernels/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

void expect_covered_once(ThreadPool& pool, std::size_t count, std::size_t grain) {
  std::vector<std::atomic<int>> seen(count);
  std::atomic<bool> in_range{true};
  pool.parallel_for(count, grain, [&](std::size_t begin, std::size_t end, int thread) {
    if (begin >= end || end > count || thread < 0 || thread >= pool.size()) in_range = false;
    for (std::size_t i = begin; i < end; ++i) ++seen[i];
  });
  EXPECT_TRUE(in_range);
  for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(seen[i], 1) << i << " of " << count << " by " << grain;
}

TEST(ThreadPool, CoversEveryItemOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::size_t count : {0, 1, 2, 7, 100, 1001}) {
      for (const std::size_t grain : {0, 1, 3, 64, 5000}) expect_covered_once(pool, count, grain);
    }
  }
}

TEST(ThreadPool, ManyShortLoops) {
  ThreadPool pool(4);
  std::atomic<std::uint64_t> sum{0};
  for (std::uint64_t round = 0; round < 20000; ++round) {
    pool.parallel_for(5, 1, [&](std::size_t begin, std::size_t, int) { sum += round + begin; });
  }
  EXPECT_EQ(sum, 5ull * (20000ull * 19999ull / 2) + 20000ull * 10);
}

TEST(ThreadPool, LoopsAfterEveryoneFellAsleep) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    expect_covered_once(pool, 50, 1);
  }
}

TEST(ThreadPool, AThreadKeepsItsNumberInALoop) {
  ThreadPool pool(4);
  std::vector<std::thread::id> owner(4);
  std::atomic<bool> mixed{false};
  pool.parallel_for(2000, 1, [&](std::size_t, std::size_t, int thread) {
    auto& id = owner[static_cast<std::size_t>(thread)];
    if (id == std::thread::id()) id = std::this_thread::get_id();
    if (id != std::this_thread::get_id()) mixed = true;
  });
  EXPECT_FALSE(mixed);
}

TEST(ThreadPool, MoreItemsThanChunksFit) {
  ThreadPool pool(2);
  std::atomic<std::size_t> items{0};
  const std::size_t count = (std::size_t{1} << 23) * 3 + 5;
  pool.parallel_for(count, 1, [&](std::size_t begin, std::size_t end, int) { items += end - begin; });
  EXPECT_EQ(items, count);
}

TEST(ThreadPool, ThrowsWhatABodyThrew) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 100; ++round) {
      const auto throws = [&] {
        pool.parallel_for(40, 1, [&](std::size_t begin, std::size_t, int) {
          if (begin % 7 == 3) throw Error("of a body");
        });
      };
      EXPECT_EQ(error_of(throws), "of a body");
      std::atomic<std::size_t> items{0};
      pool.parallel_for(40, 3, [&](std::size_t begin, std::size_t end, int) { items += end - begin; });
      EXPECT_EQ(items, 40u);
    }
  }
}

// Sanitizers take address space of their own, and end the process where there is none.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(ThreadPool, SaysWhereTheSystemGivesFewerThreads) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlim_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit little = before;
  little.rlim_cur = pages * 4096 + (rlim_t{256} << 20);  // stacks of some threads
  ASSERT_EQ(setrlimit(RLIMIT_AS, &little), 0);
  const std::string said = error_of([] { ThreadPool(4096); });
  setrlimit(RLIMIT_AS, &before);
  EXPECT_PRED2(contains, said, "of 4096 threads could be started");
}
#endif

TEST(ThreadPool, PinsItsMembers) {
  cpu_set_t before;
  CPU_ZERO(&before);
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  int cpu = 0;
  while (!CPU_ISSET(static_cast<std::size_t>(cpu), &before)) ++cpu;
  std::thread([&] {  // so that the test's own thread stays free
    ThreadPool pool(2, {cpu, cpu});
    std::atomic<int> elsewhere{0};
    pool.parallel_for(100, 1, [&](std::size_t, std::size_t, int) { elsewhere += sched_getcpu() != cpu; });
    EXPECT_EQ(elsewhere, 0);
  })
      .join();
}

}  // namespace
}  // namespace shoal
