#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "collectives/aligned_buffer.h"
#include "collectives/communicator.h"
#include "collectives/over_all_to_all.h"

namespace shoal {
namespace {

/// The sender writes a record where the receiver reads it. Nobody says "I have read it", so a slot is written again
/// only when it cannot be in use any more: who writes exchange e + 4 has waited for e + 2, for which the receiver had
/// to call post(e + 2), which is what ended its view of exchange e.
constexpr std::uint64_t kDepth = 4;

struct Slot {
  AlignedBuffer buffer;
  std::size_t bytes = 0;
};

/// The memory of one AllToAll of all ranks.
struct SharedExchange {
  explicit SharedExchange(int ranks)
      : slots(kDepth * static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks)),
        posted(static_cast<std::size_t>(ranks)) {}
  Slot& slot(std::uint64_t exchange, int src, int dest) {
    const std::size_t n = posted.size();
    return slots[(exchange % kDepth * n + static_cast<std::size_t>(src)) * n + static_cast<std::size_t>(dest)];
  }
  std::vector<Slot> slots;
  std::vector<std::uint64_t> posted;  // exchanges a rank has posted; guarded by World::mutex
};

struct World {
  World(int n, int of_host, std::function<void()> doing)
      : ranks(n), ranks_per_host(of_host), meanwhile(std::move(doing)) {}
  const int ranks, ranks_per_host;
  const std::function<void()> meanwhile;
  std::mutex mutex;
  std::condition_variable changed;
  int failed_rank = -1;
  /// By the how manyth that every rank makes, and the first of the ranks that share it.
  std::map<std::pair<std::size_t, int>, std::shared_ptr<SharedExchange>> exchanges;

  std::shared_ptr<SharedExchange> exchange(std::size_t index, int first, int among) {
    const std::lock_guard lock(mutex);
    auto& shared = exchanges[{index, first}];
    if (!shared) shared = std::make_shared<SharedExchange>(among);
    return shared;
  }
  void set_failed(int rank) {
    const std::lock_guard lock(mutex);
    if (failed_rank < 0) failed_rank = rank;
    changed.notify_all();
  }
};

class InProcessAllToAll : public AllToAll {
 public:
  InProcessAllToAll(std::shared_ptr<World> world, std::shared_ptr<SharedExchange> shared, int rank)
      : world_(std::move(world)), shared_(std::move(shared)), rank_(rank) {}

  std::span<std::byte> outgoing(int dest, std::size_t bytes) override {
    check_room();
    Slot& slot = shared_->slot(posts_, rank_, dest);
    slot.buffer.reserve(bytes);
    return {slot.buffer.data(), bytes};
  }

  void post(std::span<const std::size_t> bytes) override {
    check_room();
    for (int d = 0; d < std::ssize(shared_->posted); ++d) {
      Slot& slot = shared_->slot(posts_, rank_, d);
      slot.bytes = bytes[static_cast<std::size_t>(d)];
      if (slot.bytes > slot.buffer.capacity())
        fail("all-to-all: rank {} sends {} bytes to rank {} and asked for less", rank_, slot.bytes, d);
    }
    const std::lock_guard lock(world_->mutex);
    shared_->posted[static_cast<std::size_t>(rank_)] = ++posts_;
    world_->changed.notify_all();
  }

  void wait() override {
    if (waits_ == posts_) fail("all-to-all: rank {} waits for an exchange that it did not post", rank_);
    std::unique_lock lock(world_->mutex);
    const auto all_posted = [&] {
      return std::all_of(shared_->posted.begin(), shared_->posted.end(), [&](auto posts) { return posts > waits_; });
    };
    const auto over = [&] { return world_->failed_rank >= 0 || all_posted(); };
    while (world_->meanwhile && !over()) {
      lock.unlock();
      world_->meanwhile();
      lock.lock();
    }
    world_->changed.wait(lock, over);
    if (!all_posted()) fail("rank {} waited for rank {}, which failed", rank_, world_->failed_rank);
    ++waits_;
  }

  std::span<const std::byte> incoming(int src) const override {
    const Slot& slot = shared_->slot(waits_ - 1, src, rank_);
    return {slot.buffer.data(), slot.bytes};
  }

 private:
  void check_room() const {
    if (posts_ - waits_ >= 2) fail("all-to-all: rank {} starts a third exchange before it waited for the first", rank_);
  }

  std::shared_ptr<World> world_;
  std::shared_ptr<SharedExchange> shared_;
  const int rank_;
  std::uint64_t posts_ = 0, waits_ = 0;
};

class InProcessCommunicator : public CollectivesOverAllToAll {
 public:
  InProcessCommunicator(std::shared_ptr<World> world, int rank) : world_(std::move(world)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return world_->ranks; }
  std::string description() const override { return "in-process"; }
  int ranks_per_host() const override { return world_->ranks_per_host; }
  std::unique_ptr<AllToAll> make_all_to_all(std::size_t, std::span<const int> among) override {
    const int first = among.empty() ? 0 : among.front(), n = among.empty() ? size() : static_cast<int>(among.size());
    const auto me = among.empty() ? rank_ : std::ranges::find(among, rank_) - among.begin();
    return std::make_unique<InProcessAllToAll>(world_, world_->exchange(made_++, first, n), static_cast<int>(me));
  }

 private:
  std::shared_ptr<World> world_;
  const int rank_;
  std::size_t made_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() {
  return std::make_unique<InProcessCommunicator>(std::make_shared<World>(1, 1, nullptr), 0);
}

void run_in_process(int ranks, const std::function<void(Communicator&)>& body, int ranks_per_host,
                    std::function<void()> meanwhile) {
  const auto world = std::make_shared<World>(ranks, ranks_per_host, std::move(meanwhile));
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        InProcessCommunicator communicator(world, rank);
        body(communicator);
      } catch (...) {
        thrown[static_cast<std::size_t>(rank)] = std::current_exception();
        world->set_failed(rank);
      }
    });
  for (std::thread& thread : threads) thread.join();
  // The first to fail is the cause; others may have thrown because they waited for it.
  if (world->failed_rank >= 0) std::rethrow_exception(thrown[static_cast<std::size_t>(world->failed_rank)]);
}

}  // namespace shoal
