#include "kernels/cuda/peer_windows.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>

#include "base/boot_id.h"
#include "collectives/agreement.h"

namespace shoal::cuda {

/// What a rank tells the others of its window.
struct WindowOffer {
  char host[40] = "", gpu[24] = "";
  cudaIpcMemHandle_t memory{};
  bool made = false;
};

namespace {

constexpr std::chrono::seconds kProofLimit{10};
constexpr double kPatience = 300;  // s, as NCCL's
constexpr std::size_t kAligned = 16;
constexpr std::size_t kPage = 4096;  // of NCCL's windows
constexpr std::size_t kProof = 4096;
constexpr std::size_t kShared = 2 << 20;  // what the driver maps: nothing else must lie in it

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

std::vector<WindowOffer> gather(Communicator& comm, const WindowOffer& mine) {
  std::vector<WindowOffer> all(static_cast<std::size_t>(comm.size()));
  all[static_cast<std::size_t>(comm.rank())] = mine;
  for (int r = 0; r < comm.size(); ++r)
    comm.broadcast(std::as_writable_bytes(std::span(&all[static_cast<std::size_t>(r)], 1)), r);
  return all;
}

/// Each has a GPU of its own, or need not, of one host.
bool are_neighbours(const std::vector<WindowOffer>& offers, bool shared_gpus) {
  for (const WindowOffer& a : offers) {
    if (!a.made || a.host[0] == '\0' || std::strcmp(a.host, offers.front().host) != 0) return false;
    for (const WindowOffer& b : offers)
      if (!shared_gpus && &a != &b && std::strcmp(a.gpu, b.gpu) == 0) return false;
  }
  return true;
}

}  // namespace

PeerWindows::Layout::Layout(Room room, int ranks, bool over_network)
    : slots_of_rank(room.slots / static_cast<std::size_t>(ranks)),
      answers_of_rank(room.answers / static_cast<std::size_t>(ranks)),
      answers_at(round_up(room.slots, kAligned)),
      sent_at(round_up(answers_at + room.answers, kAligned)),
      arrivals_at(round_up(sent_at + (over_network ? room.answers : 0), kAligned)),
      bytes(round_up(arrivals_at + 2 * static_cast<std::size_t>(ranks) * sizeof(unsigned), kPage)) {}

std::unique_ptr<PeerWindows> PeerWindows::open(Communicator& comm, int device, bool shared_gpus, Room room,
                                               std::vector<DeviceBlock>& retired, cudaStream_t stream) {
  if (comm.size() < 2 || comm.size() > kMostPeers) return nullptr;
  const auto free_retired = [&] {
    comm.barrier();
    retired.clear();
  };
  free_retired();
  std::unique_ptr<PeerWindows> windows;
  WindowOffer mine;
  std::snprintf(mine.host, sizeof mine.host, "%s", boot_id().c_str());
  static_cast<void>(cudaDeviceGetPCIBusId(mine.gpu, sizeof mine.gpu, device));
  try {
    windows.reset(new PeerWindows(comm, Layout(room, comm.size(), false)));
    windows->block_ = DeviceBlock(round_up(windows->layout_.bytes, kShared));
    windows->own_ = windows->block_.data();
    windows->retired_ = &retired;
    mine.made = cudaIpcGetMemHandle(&mine.memory, windows->own()) == cudaSuccess;
  } catch (const Error&) {  // no memory for it: the others must hear of it
  }
  const std::vector<WindowOffer> offers = gather(comm, mine);
  const bool reached = are_neighbours(offers, shared_gpus) && windows->reach(offers, stream);
  static_cast<void>(cudaGetLastError());
  if (all_agree(comm, reached) && all_agree(comm, windows->prove(stream))) return windows;
  windows.reset();
  free_retired();
  return nullptr;
}

std::unique_ptr<PeerWindows> PeerWindows::open_over_network(Communicator& comm, Room room, cudaStream_t stream,
                                                            std::string& why_not) {
  DeviceTransport* const transport = comm.device_transport();
  if (!transport || comm.size() < 2 || comm.size() > kMostPeers) return nullptr;
  const Layout layout(room, comm.size(), true);
  std::unique_ptr<PeerWindows> windows;
  if (auto window = transport->open_window(layout.bytes, 2 * comm.size(), why_not)) {
    try {
      static_cast<void>(cudaGetLastError());
      windows.reset(new PeerWindows(comm, layout));
      windows->of_network_ = std::move(window);
      windows->reach_over_network(stream);
    } catch (const LeftBehind&) {
      throw;
    } catch (const Error& error) {
      why_not = error.what();
      windows.reset();
    }
  }
  if (!all_agree(comm, windows != nullptr)) {
    if (why_not.empty()) why_not = "another rank has no window";
  } else {
    if (all_agree(comm, windows->prove(stream))) return windows;
    why_not = "what kernels write does not arrive on all ranks";
  }
  return nullptr;
}

PeerWindows::PeerWindows(Communicator& comm, const Layout& layout)
    : comm_(comm),
      layout_(layout),
      list_(static_cast<std::size_t>(comm.size()) * sizeof(std::byte*)),
      counts_(5 * sizeof(unsigned)) {
  std::memset(stop_.data(), 0, stop_.bytes());
  auto* counts = reinterpret_cast<unsigned*>(counts_.data());
  peers_.window = reinterpret_cast<std::byte* const*>(list_.data());
  peers_.written = counts;
  peers_.blocks = counts + 2;
  peers_.stop = reinterpret_cast<const unsigned*>(stop_.data());
  peers_.stopped = counts + 4;
  peers_.answers_at = static_cast<std::int64_t>(layout.answers_at);
  peers_.sent_at = static_cast<std::int64_t>(layout.sent_at);
  peers_.arrivals_at = static_cast<std::int64_t>(layout.arrivals_at);
  if (Watch::is_set()) return;
  watch_.emplace([this](std::chrono::duration<double> waited) {
    try {
      comm_.check_current();
      if (waited.count() > kPatience)
        fail("rank {}: nothing came from other GPUs for {:.0f} s; a rank has ended or hangs", comm_.rank(), kPatience);
    } catch (...) {
      stop();
      throw;
    }
  });
}

PeerWindows::~PeerWindows() {
  stop();
  list_ = DeviceBlock();  // to free it waits for kernels that still write where it says
  for (void* memory : opened_) static_cast<void>(cudaIpcCloseMemHandle(memory));
  if (retired_) retired_->push_back(std::move(block_));
}

void PeerWindows::stop() {
  std::atomic_ref(*reinterpret_cast<unsigned*>(stop_.data())).store(1, std::memory_order_release);
}

void PeerWindows::clear(cudaStream_t stream) {
  check(cudaMemsetAsync(counts_.data(), 0, counts_.bytes(), stream), "clearing GPU memory");
  check(cudaMemsetAsync(own_, 0, layout_.bytes, stream), "clearing GPU memory");
  wait_for(stream, "clearing GPU memory");
}

bool PeerWindows::reach(const std::vector<WindowOffer>& offers, cudaStream_t stream) {
  std::vector<void*> windows;
  for (std::size_t r = 0; r < offers.size(); ++r) {
    void* memory = own();
    if (static_cast<int>(r) != comm_.rank()) {
      if (cudaIpcOpenMemHandle(&memory, offers[r].memory, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) return false;
      opened_.push_back(memory);
    }
    windows.push_back(memory);
  }
  check(cudaMemcpyAsync(list_.data(), windows.data(), list_.bytes(), cudaMemcpyHostToDevice, stream),
        "copying to the GPU");
  clear(stream);
  return true;
}

void PeerWindows::reach_over_network(cudaStream_t stream) {
  peers_.network = {of_network_->device_communicator(), of_network_->handle()};
  list_windows(peers_.network, comm_.size(), reinterpret_cast<std::byte**>(list_.data()), stream);
  check(cudaGetLastError(), "listing windows");
  std::vector<std::byte*> windows(static_cast<std::size_t>(comm_.size()));
  check(cudaMemcpyAsync(windows.data(), list_.data(), list_.bytes(), cudaMemcpyDeviceToHost, stream),
        "copying from the GPU");
  wait_for(stream, "copying from the GPU");
  own_ = windows[static_cast<std::size_t>(comm_.rank())];
  clear(stream);
  for (int r = 0; r < comm_.size(); ++r)
    if (!windows[static_cast<std::size_t>(r)]) far_.push_back(r);
  if (far_.empty()) peers_.network = {};
}

bool PeerWindows::prove(cudaStream_t stream) {
  const int ranks = comm_.size(), rank = comm_.rank();
  // Over the network the beginning of each rank's part is sent, and looked at.
  const auto beginning_of = [](int of, std::size_t part) {
    std::vector<std::byte> bytes(std::min(part, kProof));
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>((static_cast<std::size_t>(of) + 1) * 37 + i * 11);
    return bytes;
  };
  struct Area {
    Written what;
    std::size_t at, of_rank;    // where what comes from rank 0 begins, and to the next
    std::size_t from, of_next;  // where what goes to rank 0 does
  };
  const auto mine = static_cast<std::size_t>(rank);
  const Area areas[] = {
      {Written::slots, 0, layout_.slots_of_rank, mine * layout_.slots_of_rank, 0},
      {Written::answers, layout_.answers_at, layout_.answers_of_rank, layout_.sent_at, layout_.answers_of_rank}};
  for (const Area& area : areas) {
    const std::vector<std::byte> bytes = beginning_of(rank, area.of_rank);
    for (const int r : far_)
      check(cudaMemcpyAsync(own_ + area.from + static_cast<std::size_t>(r) * area.of_next, bytes.data(), bytes.size(),
                            cudaMemcpyHostToDevice, stream),
            "copying to the GPU");
    tell_peers(peers_, ranks, rank, area.what, stream);
    if (!far_.empty())
      put_blocks(peers_, ranks, rank, area.what, static_cast<std::int64_t>(area.from),
                 static_cast<std::int64_t>(area.of_next), static_cast<std::int64_t>(area.at + mine * area.of_rank),
                 std::ssize(bytes), stream);
    wait_for_peers(peers_, ranks, rank, area.what, stream);
    if (!far_.empty()) wait_for_puts(peers_, ranks, rank, area.what, stream);
  }
  const auto begin = std::chrono::steady_clock::now();
  bool stopped = false;
  Watch::wait_until([&] {
    if (!stopped && std::chrono::steady_clock::now() - begin > kProofLimit) {
      stopped = true;
      stop();
    }
    return cudaStreamQuery(stream) != cudaErrorNotReady;
  });
  if (stopped || cudaGetLastError() != cudaSuccess) return false;
  for (const Area& area : areas)
    for (const int r : far_) {
      const std::vector<std::byte> expected = beginning_of(r, area.of_rank);
      std::vector<std::byte> arrived(expected.size());
      check(cudaMemcpyAsync(arrived.data(), own_ + area.at + static_cast<std::size_t>(r) * area.of_rank, arrived.size(),
                            cudaMemcpyDeviceToHost, stream),
            "copying from the GPU");
      wait_for(stream, "copying from the GPU");
      if (arrived != expected) return false;
    }
  return true;
}

}  // namespace shoal::cuda
