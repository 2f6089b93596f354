#pragma once
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>

namespace shoal {

/// How a rank waits for others without taking the cores that they compute on: it polls for as long as an exchange
/// usually takes, then lets others run between polls, then sleeps for a small share of what it has waited already.
///
/// Where a program that is no rank wants the core too, it has it for milliseconds after each sched_yield(), and a rank
/// that yields would wait for that and not for the others. So after a yield that took so long it sleeps instead, for
/// the next thousand waits: who wakes up is served before who computes.
class Patience {
 public:
  /// crowded: there are more ranks on this host than cores, so that polling alone would hold up the very rank waited
  /// for.
  explicit Patience(bool crowded) : crowded_(crowded) {}

  /// A new wait begins.
  void begin() {
    begin_ = {};
    wary_ = std::max(0, wary_ - 1);
  }

  /// Whether to sleep until woken, where something wakes: when this takes longer than an exchange usually does and, if
  /// ranks have cores of their own, than it takes to wake one whose core has gone to rest.
  bool at_end() const {
    if (crowded_ && wary_ > 0) return true;
    const auto most = crowded_ ? kYieldBeforeSleep : wary_ > 0 ? kPoll : kYield;
    return begin_ != Clock::time_point{} && Clock::now() - begin_ >= most;
  }

  /// Call after each poll that found nothing. may_sleep: false while bytes are flowing that only polls move along.
  void pause(bool may_sleep) {
    const auto now = Clock::now();
    if (begin_ == Clock::time_point{}) begin_ = now;
    const auto waited = now - begin_;
    if (!crowded_ && waited < kPoll) return;
    if (may_sleep && waited >= kYield) {
      nap(std::min<std::chrono::nanoseconds>(waited / 32, kLongestNap));
    } else if (wary_ > 0) {
      nap(kShortestNap);
    } else {
      sched_yield();
      if (Clock::now() - now > kSlice) wary_ = kWaits;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kPoll{60}, kYield{1000};
  static constexpr std::chrono::microseconds kYieldBeforeSleep{30};  // among ranks that share cores
  static constexpr std::chrono::microseconds kShortestNap{1}, kLongestNap{500};
  static constexpr std::chrono::microseconds kSlice{700};  // longer than the turn of another rank
  static constexpr int kWaits = 1000;

  static void nap(std::chrono::nanoseconds time) {
    const timespec t{0, static_cast<long>(time.count())};
    nanosleep(&t, nullptr);
  }

  const bool crowded_;
  Clock::time_point begin_{};
  int wary_ = 0;  // waits that are left without sched_yield()
};

}  // namespace shoal
