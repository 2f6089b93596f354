#include "collectives/host_slots.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <utility>

#include <fmt/format.h>

#include "collectives/aligned_buffer.h"
#include "collectives/mpi_group.h"

namespace shoal {
namespace {

constexpr std::size_t always_kept = 1 << 20;  // bytes: to give back less is not worth its time

/// How others find a rank's region.
struct Address {
  std::uint64_t mark;  // stands in the region too: the process of that number may be another one where this rank looks
  std::int64_t bytes;
  int pid, descriptor;
};

/// Not std::atomic::wait, which wakes threads of the own process alone.
long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value, const timespec* limit = nullptr) {
  return syscall(SYS_futex, &word, operation, value, limit, nullptr, 0);
}

/// After which a sleeping rank looks whether those that it waits for are still there.
constexpr timespec longest_sleep{0, 50'000'000};

}  // namespace

/// At the start of a region.
struct HostSlots::Bell {
  std::atomic<std::uint64_t> mark;
  alignas(64) std::atomic<std::uint32_t> posts;
  std::atomic<std::uint32_t> sleeping;
};

/// Before the bytes of a record, which begin at the next 64-byte boundary.
struct alignas(64) HostSlots::Slot {
  std::atomic<std::uint64_t> exchange;  // the one that was posted here last, plus one
  std::uint64_t bytes;

  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
};

HostSlots::HostSlots(MpiGroup& group, std::size_t capacity) : capacity_(align_up(capacity)) {
  const std::vector<int>& here = group.on_host();
  me_ = static_cast<int>(std::ranges::find(here, group.rank()) - here.begin());
  of_rank_.assign(static_cast<std::size_t>(group.size()), -1);
  regions_.resize(here.size());
  for (Written& w : written_) w.bytes = w.held = std::vector<std::size_t>(here.size());
  bool shared = false;
  try {
    shared = here.size() > 1 && share(group);
  } catch (...) {
    unmap();
    throw;
  }
  if (shared) {
    for (int i = 0; i < std::ssize(here); ++i)
      if (i != me_) of_rank_[static_cast<std::size_t>(here[static_cast<std::size_t>(i)])] = i;
  } else {
    unmap();
  }
}

HostSlots::~HostSlots() { unmap(); }

void HostSlots::unmap() {
  for (std::byte*& region : regions_)
    if (region) munmap(std::exchange(region, nullptr), region_bytes_);
}

bool HostSlots::share(MpiGroup& group) {
  const std::size_t bytes = region_bytes_ = sizeof(Bell) + regions_.size() * kSlotsOfPair * (sizeof(Slot) + capacity_);
  const auto map = [&](int descriptor) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
  };
  const auto m = static_cast<std::size_t>(me_);
  // No name in the file system: nothing is left behind, however ranks end, and no limit of /dev/shm applies.
  struct Descriptor {
    ~Descriptor() {
      if (number >= 0) close(number);
    }
    const int number;
  };
  const Descriptor of_mine{memfd_create("shoal-slots", MFD_CLOEXEC)};
  const int mine = of_mine.number;
  rlimit most{};  // beyond which ftruncate() would end the process
  const bool allowed =
      getrlimit(RLIMIT_FSIZE, &most) == 0 && (most.rlim_cur == RLIM_INFINITY || bytes <= most.rlim_cur);
  if (mine >= 0 && allowed && ftruncate(mine, static_cast<off_t>(bytes)) == 0) regions_[m] = map(mine);
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  Address address{.mark = static_cast<std::uint64_t>(now.tv_sec) << 32 | static_cast<std::uint64_t>(now.tv_nsec),
                  .bytes = regions_[m] ? static_cast<std::int64_t>(bytes) : 0,
                  .pid = getpid(),
                  .descriptor = mine};
  address.mark = (address.mark ^ static_cast<std::uint64_t>(getpid()) << 20) | 1;
  if (regions_[m]) bell(me_).mark = address.mark;
  const std::vector<Address> all = group.gather(group.on_host(), address);
  bool shared = true;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (i == m || all[i].bytes != static_cast<std::int64_t>(bytes)) {
      shared = shared && i == m && regions_[m];
      continue;
    }
    const int its =
        open(fmt::format("/proc/{}/fd/{}", all[i].pid, all[i].descriptor).c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
    struct stat status {};
    if (its >= 0 && fstat(its, &status) == 0 && status.st_size == static_cast<off_t>(bytes)) regions_[i] = map(its);
    if (its >= 0) close(its);
    shared = shared && regions_[i] && bell(static_cast<int>(i)).mark == all[i].mark;
  }
  const std::vector<char> by_all = group.gather(group.on_host(), static_cast<char>(shared));
  return std::ranges::count(by_all, 1) == std::ssize(by_all);
}

HostSlots::Bell& HostSlots::bell(int of) const {
  return *reinterpret_cast<Bell*>(regions_[static_cast<std::size_t>(of)]);
}

HostSlots::Slot& HostSlots::slot(int receiver, int sender, std::uint64_t exchange) const {
  const std::size_t index = static_cast<std::size_t>(sender) * kSlotsOfPair + exchange % kSlotsOfPair;
  return *reinterpret_cast<Slot*>(regions_[static_cast<std::size_t>(receiver)] + sizeof(Bell) +
                                  index * (sizeof(Slot) + capacity_));
}

std::byte* HostSlots::outgoing(std::uint64_t exchange, int dest, std::size_t bytes) {
  const int receiver = of_rank_[static_cast<std::size_t>(dest)];
  count(exchange, receiver, bytes);
  return slot(receiver, me_, exchange).data();
}

void HostSlots::count(std::uint64_t exchange, int receiver, std::size_t bytes) {
  Written& w = written_[exchange % kSlotsOfPair];
  if (w.exchange != exchange) {
    w.exchange = exchange;
    std::ranges::fill(w.bytes, 0);
    w.all_bytes = 0;
  }
  const auto r = static_cast<std::size_t>(receiver);
  w.bytes[r] = bytes;
  w.all_bytes += bytes;
  longest_ = std::max(longest_, w.all_bytes);
  if (bytes <= w.held[r]) return;
  w.all_held += bytes - w.held[r];
  w.held[r] = bytes;
  if (w.all_held <= std::max(longest_ + longest_ / 2, always_kept)) return;
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t i = 0; i < w.held.size(); ++i) {
    if (w.held[i] == w.bytes[i]) continue;
    const auto start = reinterpret_cast<std::uintptr_t>(slot(static_cast<int>(i), me_, exchange).data());
    const std::uintptr_t from = (start + w.bytes[i] + page - 1) / page * page, to = (start + w.held[i]) / page * page;
    if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_REMOVE);
  }
  w.held = w.bytes;
  w.all_held = w.all_bytes;
}

void HostSlots::post(std::uint64_t exchange, int dest, std::uint64_t bytes) {
  const int receiver = of_rank_[static_cast<std::size_t>(dest)];
  Slot& s = slot(receiver, me_, exchange);
  s.bytes = bytes;
  s.exchange.store(exchange + 1, std::memory_order_release);
  // In this order on both sides: who is about to sleep says so and then looks whether there was another post.
  Bell& b = bell(receiver);
  b.posts.fetch_add(1);
  if (b.sleeping.load() != 0) futex(b.posts, FUTEX_WAKE, INT_MAX);
}

std::optional<std::uint64_t> HostSlots::arrived(std::uint64_t exchange, int src) const {
  const Slot& s = slot(me_, of_rank_[static_cast<std::size_t>(src)], exchange);
  if (s.exchange.load(std::memory_order_acquire) != exchange + 1) return {};
  return s.bytes;
}

const std::byte* HostSlots::incoming(std::uint64_t exchange, int src) const {
  return slot(me_, of_rank_[static_cast<std::size_t>(src)], exchange).data();
}

std::uint32_t HostSlots::posts() const { return bell(me_).posts.load(std::memory_order_acquire); }

void HostSlots::sleep(std::uint32_t posts) {
  Bell& b = bell(me_);
  b.sleeping.store(1);
  futex(b.posts, FUTEX_WAIT, posts, &longest_sleep);
  b.sleeping.store(0);
}

}  // namespace shoal
