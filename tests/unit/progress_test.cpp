#include "runtime/progress.h"

#include <gtest/gtest.h>
#include <pty.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <regex>
#include <thread>
#include <vector>

#include "base/units.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

/// What `work` writes to stderr, where that is a terminal of 100 columns or a pipe.
std::string stderr_of(bool terminal, const std::function<void()>& work) {
  int ends[2];
  if (terminal) {
    winsize size{};
    size.ws_col = 100;
    EXPECT_EQ(::openpty(&ends[0], &ends[1], nullptr, nullptr, &size), 0);
  } else {
    EXPECT_EQ(::pipe(ends), 0);
  }
  std::fflush(stderr);
  const int saved = ::dup(STDERR_FILENO);
  ::dup2(ends[1], STDERR_FILENO);
  work();
  std::fflush(stderr);
  ::dup2(saved, STDERR_FILENO);
  ::close(saved);
  ::close(ends[1]);
  std::string text, piece(4096, '\0');
  // A terminal whose other end is closed ends with an error, a pipe with nothing.
  for (ssize_t got; (got = ::read(ends[0], piece.data(), piece.size())) > 0;)
    text.append(piece, 0, static_cast<std::size_t>(got));
  ::close(ends[0]);
  return text;
}

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

TEST(Progress, IsSilentForShortWork) {
  for (const bool terminal : {false, true}) {
    const auto text = stderr_of(terminal, [] {
      Progress progress("reading", 100);
      progress.add(60);
      progress.add(40);
    });
    EXPECT_EQ(text, "");
  }
}

TEST(Progress, IsSilentWhereDisabled) {
  const auto text = stderr_of(true, [] {
    Progress progress("reading", 100, false);
    wait_ms(520);
    progress.add(100);
  });
  EXPECT_EQ(text, "");
}

TEST(Progress, RedrawsOneLineOnATerminal) {
  const auto text = stderr_of(true, [] {
    Progress progress("reading", 4'000'000);
    progress.add(500'000);  // too early
    wait_ms(520);
    progress.add(500'000);
    progress.add(1'000'000);  // too soon after the last
    wait_ms(220);
    progress.add(2'000'000);
  });
  EXPECT_PRED2(contains, text, "\rreading [##########------------------------------]  25 %  1.0 MB of 4.0 MB");
  EXPECT_PRED2(contains, text, " left");
  EXPECT_PRED2(contains, text, "\rreading [########################################] 100 %  4.0 MB of 4.0 MB");
  EXPECT_FALSE(contains(text, " 50 %"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
}

TEST(Progress, WritesPlainLinesElsewhere) {
  const auto text = stderr_of(false, [] {
    Progress progress("reading", 1000);
    wait_ms(520);
    progress.add(400);
  });
  EXPECT_TRUE(std::regex_match(text, std::regex("reading  40 %  400 B of 1\\.0 kB  [0-9]+ B/s  0:0[01] left\n")))
      << text;
}

TEST(Progress, CopesWithTotalsThatAreWrong) {
  const auto text = stderr_of(false, [] {
    Progress none("nothing", 0), more("more", 10);
    wait_ms(520);
    none.add(0);
    more.add(1000);
  });
  EXPECT_PRED2(contains, text, "nothing 100 %");
  EXPECT_PRED2(contains, text, "more 100 %  10 B of 10 B");
}

TEST(Progress, CountsFromManyThreads) {
  const auto text = stderr_of(true, [] {
    Progress progress("reading", 4000);
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1000; ++i) {
          progress.add(1);
          if (i % 10 == 0) wait_ms(6);
        }
      });
    }
  });
  EXPECT_PRED2(contains, text, "100 %  4.0 kB of 4.0 kB");
}

TEST(Units, AreReadable) {
  EXPECT_EQ(human_bytes(std::uint64_t{0}), "0 B");
  EXPECT_EQ(human_bytes(std::uint64_t{999}), "999 B");
  EXPECT_EQ(human_bytes(std::uint64_t{1000}), "1.0 kB");
  EXPECT_EQ(human_bytes(std::uint64_t{999'960}), "1.0 MB");
  EXPECT_EQ(human_bytes(std::uint64_t{688'600'000'000}), "688.6 GB");
  EXPECT_EQ(human_bytes(~std::uint64_t{0}), "18446.7 PB");
  EXPECT_EQ(human_count(12), "12");
  EXPECT_EQ(human_count(4'900'000), "4.9 million");
  EXPECT_EQ(human_count(671'026'419'200), "671.0 billion");
}

}  // namespace
}  // namespace shoal
