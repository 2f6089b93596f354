#pragma once
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "base/cuda/emulation/runtime.h"
#include "base/error.h"
#include "collectives/nccl/library.h"

namespace shoal::test {

/// NCCL's semantics between threads of this process, on the emulated runtime's streams: what is grouped goes on
/// together; a send is done only when its receive took it (NCCL may buffer, but promises nothing); sizes must agree;
/// nothing moves on a stream whose earlier work is not done. A rank may be told to die: the others then hear of it, or
/// wait in vain. Nothing is recorded.
class NcclStandIn final : public NcclLibrary {
 public:
  explicit NcclStandIn(int ranks) : ranks_(ranks) {}

  /// Rank's operations stop; the others are told, or not.
  void kill(int rank, bool heard) {
    const std::lock_guard lock(mutex_);
    dead_ = rank;
    heard_ = heard;
  }
  int aborted() {
    const std::lock_guard lock(mutex_);
    return aborted_;
  }

  std::string version() override { return "stand-in"; }
  Id make_id() override {
    Id id{};
    id[0] = 'i';
    return id;
  }
  std::unique_ptr<NcclGroup> join(int ranks, const Id& id, int rank) override {
    if (ranks != ranks_ || id[0] != 'i') fail("stand-in: rank {} joined another group", rank);
    std::unique_lock lock(mutex_);
    ++joined_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return joined_ >= ranks_; });
    return std::make_unique<Group>(*this, rank);
  }

 private:
  struct Message {
    std::vector<std::byte> bytes;
    bool taken = false;
  };
  struct Operation {
    bool sends;
    std::byte* memory;
    std::size_t bytes;
    int peer;
    std::shared_ptr<Message> sent;  // once it was put out
    bool done = false;
  };

  class Group final : public NcclGroup {
   public:
    Group(NcclStandIn& world, int rank) : world_(world), rank_(rank) {}
    void start() override { ++depth_; }
    void send(const void* memory, std::size_t bytes, int peer, cudaStream_t stream) override {
      add({true, static_cast<std::byte*>(const_cast<void*>(memory)), bytes, peer, nullptr}, stream);
    }
    void receive(void* memory, std::size_t bytes, int peer, cudaStream_t stream) override {
      add({false, static_cast<std::byte*>(memory), bytes, peer, nullptr}, stream);
    }
    void end() override {
      if (--depth_ > 0 || operations_.empty()) return;
      if (emulation::is_captured(stream_)) fail("stand-in: exchanges may be recorded by all ranks or none");
      emulation::enqueue_until(stream_, [this, operations = std::exchange(operations_, {})]() mutable {
        return aborted_ || world_.advance(rank_, operations);
      });
    }
    std::string error() override {
      const std::lock_guard lock(world_.mutex_);
      return world_.dead_ >= 0 && world_.heard_ ? "remote process exited" : "";
    }
    void abort() override {
      const std::lock_guard lock(world_.mutex_);
      ++world_.aborted_;
      aborted_ = true;
    }

   private:
    void add(Operation operation, cudaStream_t stream) {
      if (!emulation::is_device_memory(operation.memory)) fail("stand-in: NCCL was given memory that is not a GPU's");
      if (depth_ == 0) fail("stand-in: a send or receive outside a group waits for its peer on its own");
      if (operation.peer == rank_) fail("stand-in: rank {} sends to itself", rank_);
      stream_ = stream;
      operations_.push_back(std::move(operation));
    }
    NcclStandIn& world_;
    const int rank_;
    int depth_ = 0;
    bool aborted_ = false;
    std::vector<Operation> operations_;
    cudaStream_t stream_ = nullptr;
  };

  bool advance(int rank, std::vector<Operation>& operations) {
    const std::lock_guard lock(mutex_);
    if (dead_ == rank) return false;
    bool all = true;
    for (Operation& o : operations) {
      if (o.done) continue;
      if (o.sends) {
        if (!o.sent) {
          o.sent = std::make_shared<Message>(Message{{o.memory, o.memory + o.bytes}});
          wire_[{rank, o.peer}].push_back(o.sent);
        }
        o.done = o.sent->taken;
      } else if (auto& queue = wire_[{o.peer, rank}]; !queue.empty()) {
        if (queue.front()->bytes.size() != o.bytes)
          fail("stand-in: rank {} sent {} bytes where rank {} receives {}", o.peer, queue.front()->bytes.size(), rank,
               o.bytes);
        std::memcpy(o.memory, queue.front()->bytes.data(), o.bytes);
        queue.front()->taken = true;
        queue.pop_front();
        o.done = true;
      }
      all = all && o.done;
    }
    return all;
  }

  const int ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int joined_ = 0, dead_ = -1, aborted_ = 0;
  bool heard_ = false;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> wire_;  // from, to
};

}  // namespace shoal::test
