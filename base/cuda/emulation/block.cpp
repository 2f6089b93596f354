#include "base/cuda/emulation/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <utility>

#include "base/error.h"

namespace shoal::emulation {
namespace {

namespace context = boost::context::detail;

constexpr std::size_t kStackBytes = 256 << 10;  // touched as far as used
constexpr std::size_t kGuardBytes = 256;        // behind shared memory, filled with a pattern that must stay
constexpr std::byte kUnset{0xff}, kGuard{0xa5};
constexpr unsigned kWarp = 32;

/// SplitMix64.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : state_(seed) {}
  std::size_t below(std::size_t n) {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::size_t>((z ^ (z >> 31)) % n);
  }

 private:
  std::uint64_t state_;
};

std::string describe(const Where& where) {
  const std::string file = where.file_name();
  return fmt::format("{}:{}", file.substr(file.find_last_of('/') + 1), where.line());
}

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

struct AsyncCopy {
  void* to;
  const void* from;
  std::size_t bytes, from_bytes;
};

struct BulkCopy {
  void* to;
  const void* from;
  std::uint32_t bytes;
  std::uint64_t* barrier;
};

struct Fiber {
  Position position;
  context::fcontext_t context = nullptr;
  std::byte* stack = nullptr;
  bool done = false;
  Where waits_at;
  std::vector<AsyncCopy> open_copies;          // of no group yet
  std::vector<std::vector<AsyncCopy>> copies;  // groups, the oldest first
  std::vector<std::function<void()>> open_work;
  std::vector<std::vector<std::function<void()>>> work;
};

/// What the lanes of one mask have brought. Two rounds of room: a lane cannot come to the round after next before all
/// have read this one.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  std::uint64_t round = 0;
  Where where;
  std::vector<Fiber*> waiting;
  alignas(64) std::byte slots[2][kWarp][kLaneBytes];
};

struct Barrier {
  unsigned arrived = 0, count = 0;
  Where where;
  std::vector<Fiber*> waiting;
};

struct MemoryBarrier {
  unsigned count = 0, arrived = 0, phase = 0;
  std::int64_t missing_bytes = 0;
  std::vector<Fiber*> waiting;
};

struct SharedPart {
  std::vector<std::byte> memory;  // aligned part, guard behind it
  std::byte* begin = nullptr;
  std::size_t bytes = 0;
};

/// The one block that runs on this OS thread, and the stacks, which are kept.
class BlockRunner {
 public:
  ~BlockRunner() {
    for (std::byte* stack : stacks_) munmap(stack, kStackBytes);
  }

  void run(const char* name, const Position& first, std::size_t dynamic_bytes, const std::function<void()>& program,
           Draw& draw) {
    if (running_) fail("emulation: kernel {} was launched from inside a kernel", name);
    program_ = &program;
    const unsigned threads = first.block_dim.x * first.block_dim.y * first.block_dim.z;
    fibers_.resize(threads);
    warps_.resize((threads + kWarp - 1) / kWarp);
    for (auto& meetings : warps_)
      for (auto& meeting : meetings) meeting->arrived = 0, meeting->waiting.clear();
    barriers_.clear();
    memory_barriers_.clear();
    bulk_.clear();
    shared_.clear();
    failure_ = nullptr;
    waited_for_kernels = false;
    ready_.clear();
    while (stacks_.size() < threads) stacks_.push_back(new_stack());
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& f = fibers_[t];
      f.done = false;
      f.open_copies.clear();
      f.copies.clear();
      f.open_work.clear();
      f.work.clear();
      f.position = first;
      f.position.linear = t;
      f.position.thread = {t % first.block_dim.x, t / first.block_dim.x % first.block_dim.y,
                           t / (first.block_dim.x * first.block_dim.y)};
      f.stack = stacks_[t];
      f.context = context::make_fcontext(f.stack + kStackBytes, kStackBytes, &enter);
      ready_.push_back(&f);
    }
    dynamic_ = dynamic_bytes > 0 ? shared(&dynamic_, dynamic_bytes) : nullptr;
    running_ = true;
    while (!(ready_.empty() && bulk_.empty()) && !failure_) {
      const std::size_t i = draw.below(ready_.size() + bulk_.size());
      if (i >= ready_.size()) {
        copy(i - ready_.size());
        continue;
      }
      current_ = ready_[i];
      ready_[i] = ready_.back();
      ready_.pop_back();
      resume(*current_);
    }
    running_ = false;
    current_ = nullptr;
    if (failure_) std::rethrow_exception(failure_);
    complain_of_waiting(name);
    check_guards(name);
  }

  Fiber& current() {
    if (!current_) fail("emulation: device code was called outside a kernel");
    return *current_;
  }

  void meet(Barrier& b, unsigned count, bool wait, const Where& where) {
    Fiber& me = current();
    if (b.arrived > 0 && b.count != count)
      fail("barrier: a thread comes at {} for {} threads, another came at {} for {}", describe(where), count,
           describe(b.where), b.count);
    if (wait && !b.waiting.empty() && !same_place(b.where, where))
      fail("barrier: threads wait for each other at different places, {} and {}", describe(b.where), describe(where));
    b.count = count;
    if (wait || b.arrived == 0) b.where = where;
    if (++b.arrived == count) {
      release(b.waiting);
      b.arrived = 0;
    } else if (wait) {
      me.waits_at = where;
      b.waiting.push_back(&me);
      yield();
    }
  }
  Barrier& barrier_of(int id) { return barriers_[id]; }
  unsigned threads() const { return static_cast<unsigned>(fibers_.size()); }

  MemoryBarrier& memory_barrier(std::uint64_t* at, bool make = false) {
    if (make) return memory_barriers_[at] = {};
    const auto found = memory_barriers_.find(at);
    if (found == memory_barriers_.end()) fail("mbarrier: one is used that was not initialised");
    return found->second;
  }
  void arrive(MemoryBarrier& b, std::uint32_t bytes, const Where& where) {
    b.missing_bytes += bytes;
    if (++b.arrived > b.count) fail("mbarrier: more than {} threads arrive, at {}", b.count, describe(where));
    complete(b);
  }
  void wait(MemoryBarrier& b, unsigned parity, const Where& where) {
    while (b.phase % 2 == parity) {
      current().waits_at = where;
      b.waiting.push_back(&current());
      yield();
    }
  }
  void add(const BulkCopy& copy) {
    if (copy.bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(copy.to) % 16 != 0 ||
        reinterpret_cast<std::uintptr_t>(copy.from) % 16 != 0)
      fail("cp.async.bulk: {} bytes from {} to {} are not aligned to 16", copy.bytes, copy.from, copy.to);
    bulk_.push_back(copy);
  }

  const std::byte* meet_warp(unsigned mask, const void* value, std::size_t bytes, const Where& where) {
    Fiber& me = current();
    const unsigned warp = me.position.linear / kWarp, lane = me.position.linear % kWarp;
    const unsigned present = std::min(kWarp, threads() - warp * kWarp);
    const unsigned all = present == kWarp ? ~0u : (1u << present) - 1;
    if (bytes > kLaneBytes) fail("emulation: {} bytes a lane are more than {}", bytes, kLaneBytes);
    if (!(mask >> lane & 1u)) fail("warp: lane {} is not in its own mask {:#x} at {}", lane, mask, describe(where));
    if ((mask & ~all) != 0 && mask != ~0u)
      fail("warp: mask {:#x} at {} names lanes that the block does not have", mask, describe(where));
    mask &= all;
    Meeting& m = meeting_of(warp, mask);
    if (m.arrived != 0 && !same_place(m.where, where))
      fail("warp: lanes meet at different places, {} and {}", describe(m.where), describe(where));
    m.where = where;
    const std::uint64_t round = m.round;
    std::memcpy(m.slots[round % 2][lane], value, bytes);
    m.arrived |= 1u << lane;
    if (m.arrived == mask) {
      m.arrived = 0;
      ++m.round;
      release(m.waiting);
    } else {
      me.waits_at = where;
      m.waiting.push_back(&me);
      yield();
    }
    return &m.slots[round % 2][0][0];
  }

  std::byte* shared(const void* key, std::size_t bytes) {
    SharedPart& part = shared_[key];
    if (!part.begin) {
      constexpr std::size_t kAlignment = 1024;
      part.bytes = bytes;
      part.memory.assign(bytes + kAlignment + kGuardBytes, kUnset);
      void* p = part.memory.data();
      std::size_t room = part.memory.size();
      part.begin = static_cast<std::byte*>(std::align(kAlignment, bytes + kGuardBytes, p, room));
      std::fill_n(part.begin + bytes, kGuardBytes, kGuard);
    }
    return part.begin;
  }
  std::byte* dynamic() const { return dynamic_; }

  bool waited_for_kernels = false;  // some thread of the block has

 private:
  static std::byte* new_stack() {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("emulation: no memory for the stacks of a block");
    mprotect(p, 4096, PROT_NONE);  // what runs over shows at once
    return static_cast<std::byte*>(p);
  }

  void complete(MemoryBarrier& b) {
    if (b.arrived != b.count || b.missing_bytes != 0) return;
    b.arrived = 0;
    ++b.phase;
    release(b.waiting);
  }
  void copy(std::size_t i) {
    const BulkCopy c = bulk_[i];
    bulk_[i] = bulk_.back();
    bulk_.pop_back();
    std::memcpy(c.to, c.from, c.bytes);
    MemoryBarrier& b = memory_barrier(c.barrier);
    b.missing_bytes -= c.bytes;
    complete(b);
  }

  Meeting& meeting_of(unsigned warp, unsigned mask) {
    auto& meetings = warps_[warp];
    for (const auto& m : meetings)
      if (m->mask == mask) return *m;
    meetings.push_back(std::make_unique<Meeting>());
    meetings.back()->mask = mask;
    return *meetings.back();
  }

  void release(std::vector<Fiber*>& waiting) {
    ready_.insert(ready_.end(), waiting.begin(), waiting.end());
    waiting.clear();
  }

  void resume(Fiber& fiber) {
    const context::transfer_t back = context::jump_fcontext(fiber.context, this);
    fiber.context = back.fctx;
  }

  /// Back to the scheduler, until this fiber is resumed.
  void yield() {
    const context::transfer_t back = context::jump_fcontext(scheduler_, nullptr);
    scheduler_ = back.fctx;
  }

  static void enter(context::transfer_t from) {
    auto& self = *static_cast<BlockRunner*>(from.data);
    self.scheduler_ = from.fctx;
    try {
      (*self.program_)();
    } catch (...) {
      if (!self.failure_) self.failure_ = std::current_exception();
    }
    self.current_->done = true;
    self.yield();
    std::terminate();  // nobody resumes a thread that ended
  }

  void complain_of_waiting(const char* name) const {
    std::map<std::string, int> waiting;
    int ended = 0;
    for (const Fiber& f : fibers_) {
      if (f.done)
        ++ended;
      else
        ++waiting[describe(f.waits_at)];
    }
    if (waiting.empty()) return;
    std::string text;
    for (const auto& [where, count] : waiting) text += fmt::format(" {} at {},", count, where);
    const uint3& b = fibers_.front().position.block;
    fail("kernel {}, block ({}, {}, {}): threads wait in vain:{} while {} have ended", name, b.x, b.y, b.z, text,
         ended);
  }

  void check_guards(const char* name) const {
    for (const auto& [key, part] : shared_) {
      const std::byte* guard = part.begin + part.bytes;
      if (!std::all_of(guard, guard + kGuardBytes, [](std::byte b) { return b == kGuard; }))
        fail("kernel {} wrote beyond its {} bytes of shared memory", name, part.bytes);
    }
  }

  std::vector<std::byte*> stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> ready_;
  std::vector<std::vector<std::unique_ptr<Meeting>>> warps_;
  std::map<int, Barrier> barriers_;
  std::map<std::uint64_t*, MemoryBarrier> memory_barriers_;
  std::vector<BulkCopy> bulk_;
  std::map<const void*, SharedPart> shared_;
  std::byte* dynamic_ = nullptr;
  const std::function<void()>* program_ = nullptr;
  context::fcontext_t scheduler_ = nullptr;
  Fiber* current_ = nullptr;
  std::exception_ptr failure_;
  bool running_ = false;
};

BlockRunner& runner() {
  static thread_local BlockRunner instance;
  return instance;
}
thread_local std::uint64_t seed = 1;

}  // namespace

void set_seed(std::uint64_t s) { seed = s; }
const Position& position() { return runner().current().position; }
unsigned threads_in_block() { return runner().threads(); }

void run_grid(const char* name, dim3 grid, dim3 block, std::size_t dynamic_shared_bytes, bool must_wait,
              const std::function<void()>& program) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) fail("kernel {}: a block of {} threads is impossible", name, threads);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    fail("kernel {}: a grid of {} x {} x {} is impossible", name, grid.x, grid.y, grid.z);
  Draw draw(seed++);
  std::vector<std::size_t> order(std::size_t{grid.x} * grid.y * grid.z);
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t j = draw.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (const std::size_t b : order) {
    Position first{};
    first.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / (std::size_t{grid.x} * grid.y))};
    first.block_dim = block;
    first.grid_dim = grid;
    runner().run(name, first, dynamic_shared_bytes, program, draw);
    if (must_wait && !runner().waited_for_kernels)
      fail("kernel {}, block ({}, {}, {}) ended without waiting for the kernels before it", name, first.block.x,
           first.block.y, first.block.z);
  }
}

void wait_for_previous_kernels() { runner().waited_for_kernels = true; }
void barrier(int id, unsigned count, Where where) { runner().meet(runner().barrier_of(id), count, true, where); }
void barrier_arrive(int id, unsigned count, Where where) {
  runner().meet(runner().barrier_of(id), count, false, where);
}
const std::byte* meet_warp(unsigned mask, const void* value, std::size_t bytes, Where where) {
  return runner().meet_warp(mask, value, bytes, where);
}
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t from_bytes) {
  const auto aligned = [&](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % bytes == 0; };
  if ((bytes != 4 && bytes != 8 && bytes != 16) || !aligned(to) || !aligned(from) || from_bytes > bytes)
    fail("cp.async: {} bytes from {} to {} are not aligned, or no size that it has", bytes, from, to);
  runner().current().open_copies.push_back({to, from, bytes, from_bytes});
}
void commit_copies() {
  Fiber& f = runner().current();
  f.copies.push_back(std::exchange(f.open_copies, {}));
}
void wait_copies(unsigned pending) {
  Fiber& f = runner().current();
  for (; f.copies.size() > pending; f.copies.erase(f.copies.begin()))
    for (const AsyncCopy& c : f.copies.front()) {
      if (c.from_bytes > 0) std::memcpy(c.to, c.from, c.from_bytes);
      std::memset(static_cast<std::byte*>(c.to) + c.from_bytes, 0, c.bytes - c.from_bytes);
    }
}
void mbarrier_init(std::uint64_t* barrier, unsigned count) { runner().memory_barrier(barrier, true).count = count; }
void mbarrier_arrive(std::uint64_t* barrier, std::uint32_t expected_bytes, Where where) {
  runner().arrive(runner().memory_barrier(barrier), expected_bytes, where);
}
void mbarrier_wait(std::uint64_t* barrier, unsigned parity, Where where) {
  runner().wait(runner().memory_barrier(barrier), parity, where);
}
void copy_bulk(void* to, const void* from, std::uint32_t bytes, std::uint64_t* barrier) {
  runner().memory_barrier(barrier);
  runner().add({to, from, bytes, barrier});
}
void defer(std::function<void()> work) { runner().current().open_work.push_back(std::move(work)); }
void commit_deferred() {
  Fiber& f = runner().current();
  f.work.push_back(std::exchange(f.open_work, {}));
}
void wait_deferred(unsigned pending) {
  Fiber& f = runner().current();
  for (; f.work.size() > pending; f.work.erase(f.work.begin()))
    for (const auto& work : f.work.front()) work();
}
std::byte* shared_memory(const void* key, std::size_t bytes) { return runner().shared(key, bytes); }
std::byte* dynamic_shared_memory() { return runner().dynamic(); }

}  // namespace shoal::emulation
