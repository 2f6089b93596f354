#pragma once
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "base/cuda/emulation/network.h"
#include "base/cuda/emulation/runtime.h"
#include "base/error.h"
#include "collectives/nccl/library.h"

namespace shoal::test {

/// NCCL's semantics between threads of this process, on the emulated runtime's streams: what is grouped goes on
/// together; a send is done only when its receive took it (NCCL may buffer, but promises nothing); sizes must agree;
/// nothing moves on a stream whose earlier work is not done. A rank may be told to die: the others then hear of it, or
/// wait in vain. Nothing is recorded.
///
/// Windows are there where `neighbours` is not 0: so many ranks each reach each other's by stores, the others by puts.
/// What is put is read and written as late as may be, in any order between two signals.
class NcclStandIn final : public NcclLibrary {
 public:
  explicit NcclStandIn(int ranks, int neighbours = 0)
      : ranks_(ranks), neighbours_(neighbours), opened_(static_cast<std::size_t>(ranks)) {}

  enum class WindowFault { none, missing_on_rank_1, wrong_bytes_from_rank_1 };
  void spoil_windows(WindowFault fault) { fault_ = fault; }
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
  std::string why_no_windows() override { return neighbours_ == 0 ? "the stand-in was made without windows" : ""; }
  std::shared_ptr<DeviceWindow> open_window(int ranks, const Id& id, int rank, std::size_t bytes,
                                            int signals) override {
    if (ranks != ranks_ || id[0] != 'i') fail("stand-in: rank {} opened a window of another group", rank);
    if (fault_ == WindowFault::missing_on_rank_1 && rank == 1) fail("stand-in: no window");
    std::unique_lock lock(mutex_);
    // Each rank's n-th window is one with the others' n-th.
    const std::size_t n = opened_[static_cast<std::size_t>(rank)]++;
    if (n == windows_.size()) windows_.push_back(std::make_shared<Windows>(ranks, signals));
    const std::shared_ptr<Windows> all = windows_[n];
    auto window = std::make_shared<Window>(*this, all, rank, bytes);
    if (all->bytes == 0) all->bytes = bytes;
    if (all->bytes != bytes) fail("stand-in: a window of {} bytes beside others of {}", bytes, all->bytes);
    changed_.notify_all();
    changed_.wait(lock, [&] { return all->there == ranks_ - (fault_ == WindowFault::missing_on_rank_1 ? 1 : 0); });
    window->reach_neighbours();
    return window;
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

  /// One window of each rank.
  struct Windows {
    Windows(int ranks, int signals_each)
        : memory(static_cast<std::size_t>(ranks)),
          signalled(static_cast<std::size_t>(ranks),
                    std::vector<std::uint64_t>(static_cast<std::size_t>(signals_each))) {}
    struct Put {
      std::int64_t to, from, bytes;
      int signal;  // in place of it; -1: none
    };
    std::size_t bytes = 0;
    int there = 0;
    std::vector<std::byte*> memory;                            // [ranks], null once it is closed
    std::vector<std::vector<std::uint64_t>> signalled;         // [ranks][signals]
    std::map<std::pair<int, int>, std::deque<Put>> under_way;  // from, to
    std::mt19937 random{7};
  };

  class Window final : public DeviceWindow, public emulation::Network {
   public:
    Window(NcclStandIn& world, std::shared_ptr<Windows> all, int rank, std::size_t bytes)
        : world_(world), all_(std::move(all)), rank_(rank) {
      if (cudaMalloc(&memory_, bytes) != cudaSuccess) fail("stand-in: no memory for a window");
      all_->memory[static_cast<std::size_t>(rank)] = static_cast<std::byte*>(memory_);
      ++all_->there;
    }
    ~Window() override {
      // By now a network's card has long done what it was told.
      cudaStream_t stream = nullptr;
      cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      emulation::enqueue(stream, [this] {
        const std::lock_guard lock(world_.mutex_);
        for (int to = 0; to < world_.ranks_; ++to)
          while (deliver(rank_, to)) {
          }
        all_->memory[static_cast<std::size_t>(rank_)] = nullptr;
      });
      cudaStreamSynchronize(stream);
      cudaStreamDestroy(stream);
      for (void* other : reached_) cudaIpcCloseMemHandle(other);
      cudaFree(memory_);
    }
    void reach_neighbours() {
      for (int r = 0; r < world_.ranks_; ++r) {
        if (r == rank_ || !all_->memory[static_cast<std::size_t>(r)] ||
            r / world_.neighbours_ != rank_ / world_.neighbours_)
          continue;
        cudaIpcMemHandle_t handle;
        void* memory = nullptr;
        cudaIpcGetMemHandle(&handle, all_->memory[static_cast<std::size_t>(r)]);
        cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
        reached_.push_back(memory);
      }
    }
    const void* device_communicator() const override { return static_cast<const emulation::Network*>(this); }
    const void* handle() const override { return memory_; }
    std::string error() override { return ""; }

    std::byte* stored(int rank) override {
      const bool near = rank / world_.neighbours_ == rank_ / world_.neighbours_;
      const std::lock_guard lock(world_.mutex_);
      return near ? all_->memory[static_cast<std::size_t>(rank)] : nullptr;
    }
    void put(int rank, std::int64_t to, std::int64_t from, std::int64_t bytes) override {
      const auto within = [&](std::int64_t at) {
        return at >= 0 && bytes > 0 && at + bytes <= static_cast<std::int64_t>(all_->bytes);
      };
      if (rank == rank_ || !within(to) || !within(from))
        fail("stand-in: rank {} puts {} bytes from {} to {} of rank {}", rank_, bytes, from, to, rank);
      add(rank, {to, from, bytes, -1});
    }
    void signal(int rank, int number) override { add(rank, {0, 0, 0, number}); }
    std::uint64_t signalled(int number) override {
      const std::lock_guard lock(world_.mutex_);
      for (int from = 0; from < world_.ranks_; ++from)
        if (all_->random() % 3 == 0) deliver(from, rank_);
      return all_->signalled[static_cast<std::size_t>(rank_)].at(static_cast<std::size_t>(number));
    }

   private:
    using Put = typename Windows::Put;
    void add(int to, const Put& put) {
      const std::lock_guard lock(world_.mutex_);
      all_->under_way[{rank_, to}].push_back(put);
    }
    /// What one rank has put to another as far as its next signal; false where there is nothing.
    bool deliver(int from, int to) {
      auto& all = all_->under_way[{from, to}];
      const auto signal = std::find_if(all.begin(), all.end(), [](const Put& put) { return put.signal >= 0; });
      const std::byte* source = all_->memory[static_cast<std::size_t>(from)];
      std::byte* const target = all_->memory[static_cast<std::size_t>(to)];
      if (from == world_.dead_ || signal == all.end() || !source || !target) return false;
      std::shuffle(all.begin(), signal, all_->random);
      for (auto put = all.begin(); put != signal; ++put)
        std::memcpy(target + put->to, source + put->from, static_cast<std::size_t>(put->bytes));
      if (from == 1 && world_.fault_ == WindowFault::wrong_bytes_from_rank_1 && signal != all.begin())
        target[all.front().to] ^= std::byte{1};
      ++all_->signalled[static_cast<std::size_t>(to)].at(static_cast<std::size_t>(signal->signal));
      all.erase(all.begin(), std::next(signal));
      return true;
    }
    NcclStandIn& world_;
    const std::shared_ptr<Windows> all_;
    const int rank_;
    void* memory_ = nullptr;
    std::vector<void*> reached_;
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

  const int ranks_, neighbours_;
  WindowFault fault_ = WindowFault::none;
  std::mutex mutex_;
  std::condition_variable changed_;
  int joined_ = 0, dead_ = -1, aborted_ = 0;
  bool heard_ = false;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Message>>> wire_;  // from, to
  std::vector<std::size_t> opened_;                                           // [ranks] windows
  std::vector<std::shared_ptr<Windows>> windows_;
};

}  // namespace shoal::test
