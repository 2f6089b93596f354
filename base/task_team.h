#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace shoal {

/// Calls work(i) for every i < count, begun in ascending order, on `threads` threads with this one among them. Each has
/// a copy of `work`: what a mutable one captures by value stays with its thread from task to task. Once a task throws,
/// no other begins, and when all have ended its exception is thrown. Where the system gives fewer threads, those do it
/// all.
template <class Work>
void run_tasks(int threads, std::size_t count, const Work& work) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto take_turns = [&] {
    Work mine = work;
    for (std::size_t i; (i = next++) < count;) {
      try {
        mine(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
        next = count;
      }
    }
  };
  std::vector<std::jthread> team;
  try {
    for (std::size_t t = 1; t < std::min(count, static_cast<std::size_t>(threads)); ++t) team.emplace_back(take_turns);
  } catch (const std::system_error&) {
  }
  take_turns();
  team.clear();  // joins
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace shoal
