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

/// Where things lie in a window.
struct Layout {
  std::size_t answers_at, sent_at, arrivals_at, bytes;

  Layout(PeerWindows::Room room, int ranks, bool over_network)
      : answers_at(round_up(room.slots, kAligned)),
        sent_at(round_up(answers_at + room.answers, kAligned)),
        arrivals_at(round_up(sent_at + (over_network ? room.answers : 0), kAligned)),
        bytes(round_up(arrivals_at + 2 * static_cast<std::size_t>(ranks) * sizeof(unsigned), kPage)) {}
  void tell(Peers& peers) const {
    peers.answers_at = static_cast<std::int64_t>(answers_at);
    peers.sent_at = static_cast<std::int64_t>(sent_at);
    peers.arrivals_at = static_cast<std::int64_t>(arrivals_at);
  }
};

}  // namespace

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
    windows.reset(new PeerWindows(comm, room, &retired));
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

std::unique_ptr<PeerWindows> PeerWindows::open_over_network(Communicator& comm, Room room, cudaStream_t stream) {
  DeviceTransport* const transport = comm.device_transport();
  if (!transport || comm.size() < 2 || comm.size() > kMostPeers) return nullptr;
  auto window = transport->open_window(Layout(room, comm.size(), true).bytes, 2 * comm.size());
  std::unique_ptr<PeerWindows> windows;
  if (window) windows.reset(new PeerWindows(comm, room, std::move(window)));
  if (!all_agree(comm, windows != nullptr)) return nullptr;
  windows->reach_over_network(stream);
  comm.barrier();  // before others write there
  if (all_agree(comm, windows->prove(stream))) return windows;
  return nullptr;
}

PeerWindows::PeerWindows(Communicator& comm, Room room)
    : comm_(comm),
      room_(room),
      list_(static_cast<std::size_t>(comm.size()) * sizeof(std::byte*)),
      counts_(5 * sizeof(unsigned)) {
  std::memset(stop_.data(), 0, stop_.bytes());
  auto* counts = reinterpret_cast<unsigned*>(counts_.data());
  peers_.window = reinterpret_cast<std::byte* const*>(list_.data());
  peers_.written = counts;
  peers_.blocks = counts + 2;
  peers_.stop = reinterpret_cast<const unsigned*>(stop_.data());
  peers_.stopped = counts + 4;
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

PeerWindows::PeerWindows(Communicator& comm, Room room, std::vector<DeviceBlock>* retired) : PeerWindows(comm, room) {
  const Layout layout(room, comm.size(), false);
  own_ = DeviceBlock(round_up(layout.bytes, kShared));
  layout.tell(peers_);
  retired_ = retired;
}

PeerWindows::PeerWindows(Communicator& comm, Room room, std::unique_ptr<DeviceWindow> of_network)
    : PeerWindows(comm, room) {
  Layout(room, comm.size(), true).tell(peers_);
  of_network_ = std::move(of_network);
  peers_.network = {of_network_->device_communicator(), of_network_->handle()};
}

PeerWindows::~PeerWindows() {
  stop();
  list_ = DeviceBlock();  // to free it waits for kernels that still write where it says
  for (void* memory : opened_) static_cast<void>(cudaIpcCloseMemHandle(memory));
  if (retired_) retired_->push_back(std::move(own_));
}

void PeerWindows::stop() {
  std::atomic_ref(*reinterpret_cast<unsigned*>(stop_.data())).store(1, std::memory_order_release);
}

void PeerWindows::clear(cudaStream_t stream) {
  check(cudaMemsetAsync(counts_.data(), 0, counts_.bytes(), stream), "clearing GPU memory");
  const std::size_t bytes = Layout(room_, comm_.size(), of_network_ != nullptr).bytes;
  check(cudaMemsetAsync(own(), 0, bytes, stream), "clearing GPU memory");
  wait_for(stream, "clearing GPU memory");  // before others write there
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
  list_windows(peers_.network, comm_.size(), reinterpret_cast<std::byte**>(list_.data()), stream);
  std::vector<std::byte*> windows(static_cast<std::size_t>(comm_.size()));
  check(cudaMemcpyAsync(windows.data(), list_.data(), list_.bytes(), cudaMemcpyDeviceToHost, stream),
        "copying from the GPU");
  clear(stream);
  far_.clear();
  for (int r = 0; r < comm_.size(); ++r)
    if (!windows[static_cast<std::size_t>(r)]) far_.push_back(r);
  if (far_.empty()) peers_.network = {};
}

bool PeerWindows::prove(cudaStream_t stream) {
  // What is put is more than a number: its beginning is looked at.
  const int ranks = comm_.size(), rank = comm_.rank();
  const auto block = [&](std::size_t of_all) { return of_all / static_cast<std::size_t>(ranks); };
  const auto pattern = [](int of, std::size_t bytes) {
    std::vector<std::byte> all(std::min(bytes, kProof));
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = static_cast<std::byte>((static_cast<std::size_t>(of) + 1) * 37 + i * 11);
    return all;
  };
  struct Area {
    Written what;
    std::int64_t at, from, step;
    std::size_t of_rank;
  };
  const auto of_slots = static_cast<std::int64_t>(block(room_.slots)),
             of_answers = static_cast<std::int64_t>(block(room_.answers));
  const Area areas[] = {{Written::slots, 0, rank * of_slots, 0, block(room_.slots)},
                        {Written::answers, peers_.answers_at, peers_.sent_at, of_answers, block(room_.answers)}};
  for (const Area& area : areas) {
    const std::vector<std::byte> mine = pattern(rank, area.of_rank);
    const auto to = area.at + rank * static_cast<std::int64_t>(area.of_rank);
    for (const int r : far_)
      check(
          cudaMemcpyAsync(own() + area.from + r * area.step, mine.data(), mine.size(), cudaMemcpyHostToDevice, stream),
          "copying to the GPU");
    tell_peers(peers_, ranks, rank, area.what, stream);
    if (!far_.empty())
      put_blocks(peers_, ranks, rank, area.what, area.from, area.step, to, static_cast<std::int64_t>(mine.size()),
                 stream);
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
      const std::vector<std::byte> expected = pattern(r, area.of_rank);
      std::vector<std::byte> arrived(expected.size());
      check(cudaMemcpyAsync(arrived.data(), own() + area.at + r * static_cast<std::int64_t>(area.of_rank),
                            arrived.size(), cudaMemcpyDeviceToHost, stream),
            "copying from the GPU");
      wait_for(stream, "copying from the GPU");
      if (arrived != expected) return false;
    }
  return true;
}

}  // namespace shoal::cuda
