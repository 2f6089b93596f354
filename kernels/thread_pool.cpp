#include "kernels/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"

namespace shoal {
namespace {

using Clock = std::chrono::steady_clock;

/// Long enough to bridge the gap between two operators of a layer, short enough not to starve a neighbour's threads.
constexpr auto kSpin = std::chrono::microseconds(40);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Spins until `ready()`; false when it took too long and the caller should sleep.
template <class Ready>
bool spin_until(const Ready& ready) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    relax();
  }
  const auto give_up = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < give_up);
  return false;
}

void pin_this_thread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  sched_setaffinity(0, sizeof set, &set);  // a wish: a forbidden CPU leaves the thread where it may run
}

}  // namespace

/// A loop is published as one 64-bit ticket: | generation 16 | chunks 24 | next chunk 24 |. A member takes a chunk by
/// adding one, and learns from the same word which loop it belongs to and whether it exists, so the caller need only
/// wait for the chunks to be done, never for members that slept through the loop. The loop's description stays valid
/// while one of its chunks is unfinished, which is the only time a member reads it.
struct ThreadPool::Team {
  static constexpr int kChunkBits = 24;
  static constexpr std::uint64_t kChunkMask = (std::uint64_t{1} << kChunkBits) - 1;
  /// Members past the end still count `next` up, each once a loop; the room above keeps that from overflowing.
  static constexpr std::size_t kMostChunks = std::size_t{1} << 23;

  using Body = std::function<void(std::size_t, std::size_t, int)>;

  // Each on a line of its own: the ticket is written by all members, the rest by few.
  alignas(64) std::atomic<std::uint64_t> ticket{0};
  alignas(64) std::atomic<std::size_t> done{0};
  alignas(64) std::atomic<std::uint32_t> wake_members{0};
  std::atomic<int> sleeping_members{0};
  std::atomic<std::uint32_t> wake_caller{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};

  const Body* body = nullptr;
  std::size_t count = 0, grain = 1;
  std::mutex thrown_mutex;
  std::exception_ptr thrown;  // by the loop's body, the first
  std::uint64_t generation = 0;
  int caller_cpu = -1;
  std::thread::id pinned_caller;
  std::vector<std::thread> threads;

  static bool has_chunk(std::uint64_t t) { return (t & kChunkMask) < ((t >> kChunkBits) & kChunkMask); }

  /// Takes chunks until none are left; returns after all it took are counted as done.
  void work(int thread) {
    std::size_t finished = 0;
    while (has_chunk(ticket.load(std::memory_order_acquire))) {
      const std::uint64_t t = ticket.fetch_add(1, std::memory_order_acq_rel);
      if (!has_chunk(t)) break;
      const std::size_t begin = static_cast<std::size_t>(t & kChunkMask) * grain;
      try {
        (*body)(begin, std::min(begin + grain, count), thread);
      } catch (...) {
        const std::lock_guard lock(thrown_mutex);
        if (!thrown) thrown = std::current_exception();
      }
      ++finished;
    }
    if (finished == 0) return;
    done.fetch_add(finished, std::memory_order_seq_cst);
    if (caller_sleeps.load(std::memory_order_seq_cst)) {
      wake_caller.fetch_add(1);
      wake_caller.notify_one();
    }
  }

  void member(int thread, int cpu) {
    if (cpu >= 0) pin_this_thread(cpu);
    const auto ready = [&] { return has_chunk(ticket.load(std::memory_order_acquire)) || stop.load(); };
    while (!stop.load()) {
      if (!spin_until(ready)) {
        const std::uint32_t seen = wake_members.load();
        sleeping_members.fetch_add(1);
        if (!has_chunk(ticket.load()) && !stop.load()) wake_members.wait(seen);
        sleeping_members.fetch_sub(1);
        continue;
      }
      work(thread);
    }
  }

  void wake() {
    if (sleeping_members.load() == 0) return;
    wake_members.fetch_add(1);
    wake_members.notify_all();
  }

  void end() {
    stop.store(true);
    wake_members.fetch_add(1);
    wake_members.notify_all();
    for (std::thread& t : threads) t.join();
  }

  void run(std::size_t items, std::size_t chunk, const Body& f) {
    body = &f;
    count = items;
    grain = chunk;
    const std::size_t chunks = (items + chunk - 1) / chunk;
    done.store(0, std::memory_order_relaxed);
    ++generation;
    ticket.store(((generation & 0xffff) << (2 * kChunkBits)) | (std::uint64_t{chunks} << kChunkBits));
    wake();
    work(0);
    const auto finished = [&] { return done.load(std::memory_order_acquire) == chunks; };
    while (!spin_until(finished)) {
      const std::uint32_t seen = wake_caller.load();
      caller_sleeps.store(true);
      if (done.load() != chunks) wake_caller.wait(seen);
      caller_sleeps.store(false);
    }
    if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
  }
};

ThreadPool::ThreadPool(int threads, std::vector<int> cpus) : team_(std::make_unique<Team>()) {
  const auto cpu_of = [&](int i) { return static_cast<std::size_t>(i) < cpus.size() ? cpus[i] : -1; };
  team_->caller_cpu = cpu_of(0);
  team_->threads.reserve(static_cast<std::size_t>(std::max(threads, 1)));
  try {
    for (int i = 1; i < threads; ++i)
      team_->threads.emplace_back([team = team_.get(), i, cpu = cpu_of(i)] { team->member(i, cpu); });
  } catch (const std::system_error& error) {
    const int started = size();
    team_->end();
    fail("no more than {} of {} threads could be started: {}", started, threads, error.code().message());
  }
}

ThreadPool::~ThreadPool() { team_->end(); }

int ThreadPool::size() const { return static_cast<int>(team_->threads.size()) + 1; }

void ThreadPool::parallel_for(std::size_t count, std::size_t grain,
                              const std::function<void(std::size_t begin, std::size_t end, int thread)>& body) {
  if (count == 0) return;
  if (team_->caller_cpu >= 0 && team_->pinned_caller != std::this_thread::get_id()) {
    pin_this_thread(team_->caller_cpu);
    team_->pinned_caller = std::this_thread::get_id();
  }
  grain = std::max({grain, std::size_t{1}, (count + Team::kMostChunks - 1) / Team::kMostChunks});
  if (team_->threads.empty() || count <= grain) {
    for (std::size_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), 0);
    return;
  }
  team_->run(count, grain, body);
}

}  // namespace shoal
