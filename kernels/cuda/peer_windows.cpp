#include "kernels/cuda/peer_windows.h"

#include <array>
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

std::unique_ptr<PeerWindows> PeerWindows::open(Communicator& comm, int device, bool shared_gpus, std::size_t answers_at,
                                               std::size_t bytes, std::vector<DeviceBlock>& retired,
                                               cudaStream_t stream) {
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
    windows.reset(new PeerWindows(comm, answers_at, bytes, retired));
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

PeerWindows::PeerWindows(Communicator& comm, std::size_t answers_at, std::size_t bytes,
                         std::vector<DeviceBlock>& retired)
    : comm_(comm),
      retired_(retired),
      own_(round_up(round_up(bytes, kAligned) + 2 * static_cast<std::size_t>(comm.size()) * sizeof(unsigned), kShared)),
      list_(static_cast<std::size_t>(comm.size()) * sizeof(std::byte*)),
      counts_(5 * sizeof(unsigned)) {
  std::memset(stop_.data(), 0, stop_.bytes());
  auto* counts = reinterpret_cast<unsigned*>(counts_.data());
  peers_ = {reinterpret_cast<std::byte* const*>(list_.data()),
            static_cast<std::int64_t>(answers_at),
            static_cast<std::int64_t>(round_up(bytes, kAligned)),
            counts,
            counts + 2,
            reinterpret_cast<const unsigned*>(stop_.data()),
            counts + 4};
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
  retired_.push_back(std::move(own_));
}

void PeerWindows::stop() {
  std::atomic_ref(*reinterpret_cast<unsigned*>(stop_.data())).store(1, std::memory_order_release);
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
  check(cudaMemsetAsync(counts_.data(), 0, counts_.bytes(), stream), "clearing GPU memory");
  check(cudaMemsetAsync(own_.data(), 0, own_.bytes(), stream), "clearing GPU memory");
  wait_for(stream, "clearing GPU memory");  // before others write there
  return true;
}

bool PeerWindows::prove(cudaStream_t stream) {
  for (const Written what : {Written::slots, Written::answers}) {
    tell_peers(peers_, comm_.size(), comm_.rank(), what, stream);
    wait_for_peers(peers_, comm_.size(), comm_.rank(), what, stream);
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
  return !stopped && cudaGetLastError() == cudaSuccess;
}

}  // namespace shoal::cuda
