#pragma once
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <chrono>

namespace shoal {

/// How a rank waits for others without taking the cores that they compute on: it polls for as long as an exchange
/// usually takes, then lets others run between polls, then sleeps for a small share of what it has waited already.
class Patience {
 public:
  /// crowded: there are more ranks on this host than cores, so that polling alone would hold up the very rank waited
  /// for.
  explicit Patience(bool crowded) : crowded_(crowded) {}

  /// Call after each poll that found nothing. may_sleep: false while bytes are flowing that only polls move along.
  void pause(bool may_sleep) {
    using namespace std::chrono_literals;
    const auto now = Clock::now();
    if (begin_ == Clock::time_point{}) begin_ = now;
    const auto waited = now - begin_;
    if (!crowded_ && waited < kPoll) return;
    if (!may_sleep || waited < kYield) {
      sched_yield();
      return;
    }
    const auto nap = std::min<std::chrono::nanoseconds>(waited / 32, 500us);
    const timespec t{0, static_cast<long>(nap.count())};
    nanosleep(&t, nullptr);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kPoll{60};
  static constexpr std::chrono::microseconds kYield{1000};

  const bool crowded_;
  Clock::time_point begin_{};
};

}  // namespace shoal
