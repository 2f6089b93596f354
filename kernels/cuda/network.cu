#include <stdexcept>

#include "kernels/cuda/peer_arrivals.h"
#include "kernels/cuda/slot_entries.h"
#ifdef SHOAL_CUDA_EMULATION
#include "base/cuda/emulation/network.h"
#define SHOAL_PUTS 1
#elif __has_include(<nccl_device.h>)
#include <nccl.h>
#if NCCL_VERSION_CODE >= 22807
#include <nccl_device.h>
#define SHOAL_PUTS 1
#endif
#endif

// What goes to GPUs that stores do not reach: kernels hand it to the network themselves (NCCL's "GIN"), so that an
// exchange between hosts is part of a recorded graph and carries what is asked for.
namespace shoal::cuda {
namespace {

constexpr int kThreads = 256;

/// The number that a rank counts up in another's memory when it has written.
__device__ __forceinline__ int signal_number(int ranks, int from, Written what) {
  return static_cast<int>(what) * ranks + from;
}

#ifdef SHOAL_PUTS
/// From one rank to another. Puts by any thread of a block go before a signal that follows them behind a barrier.
class Route {
 public:
#ifdef SHOAL_CUDA_EMULATION
  Route(const Network& network, int, int peer)
      : network_(static_cast<emulation::Network*>(const_cast<void*>(network.communicator))), peer_(peer) {}
  void put(std::int64_t to, std::int64_t from, std::int64_t bytes) const { network_->put(peer_, to, from, bytes); }
  void signal(int number) const { network_->signal(peer_, number); }
  unsigned signalled(int number) const { return static_cast<unsigned>(network_->signalled(number)); }

 private:
  emulation::Network* network_;
#else
  /// Two ranks meet in the context of their sum: of several, each with a queue of its own for every peer, both use it.
  __device__ __forceinline__ Route(const Network& network, int rank, int peer)
      : gin_(*static_cast<const ncclDevComm*>(network.communicator),
             (rank + peer) % static_cast<const ncclDevComm*>(network.communicator)->ginContextCount),
        window_(static_cast<ncclWindow_t>(const_cast<void*>(network.window))),
        peer_(peer) {}
  __device__ __forceinline__ void put(std::int64_t to, std::int64_t from, std::int64_t bytes) const {
    gin_.put(ncclTeamWorld(gin_.comm), peer_, window_, static_cast<std::size_t>(to), window_,
             static_cast<std::size_t>(from), static_cast<std::size_t>(bytes));
  }
  __device__ __forceinline__ void signal(int number) const {
    gin_.signal(ncclTeamWorld(gin_.comm), peer_, ncclGin_SignalInc{static_cast<ncclGinSignal_t>(number)});
  }
  __device__ __forceinline__ unsigned signalled(int number) const {
    return static_cast<unsigned>(gin_.readSignal(static_cast<ncclGinSignal_t>(number), 32));
  }

 private:
  const ncclGin gin_;
  const ncclWindow_t window_;
#endif
  const int peer_;
};

/// Windows as stores reach them; at the start only.
///   shape      window [ranks]
///   grid       one block, a thread for each rank
__global__ void __launch_bounds__(kMostPeers) list_windows_kernel(Network network, int ranks, std::byte** window) {
  follow_previous_kernels();
  const int rank = static_cast<int>(threadIdx.x);
  if (rank >= ranks) return;
#ifdef SHOAL_CUDA_EMULATION
  window[rank] = static_cast<emulation::Network*>(const_cast<void*>(network.communicator))->stored(rank);
#else
  const auto& communicator = *static_cast<const ncclDevComm*>(network.communicator);
  const int in_team = rank - communicator.rank + communicator.lsaRank;
  window[rank] = in_team < 0 || in_team >= communicator.lsaSize
                     ? nullptr
                     : static_cast<std::byte*>(
                           ncclGetLsaPointer(static_cast<ncclWindow_t>(const_cast<void*>(network.window)), 0, in_team));
#endif
}

/// Those of `count` units of `bytes` that are asked for, runs of up to 32 of them at once. By all threads of a block.
template <class Asked>
__device__ __forceinline__ void put_asked(const Route& route, int count, std::int64_t bytes, std::int64_t to,
                                          std::int64_t from, const Asked& asked) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  for (int first = thread - lane; first < count; first += kThreads) {
    const int i = first + lane;
    const bool goes = i < count && asked(i);
    const unsigned all = __ballot_sync(kAllLanes, goes ? 1 : 0), ends = ~(all >> lane);
    if (!goes || (lane > 0 && (all >> (lane - 1) & 1u) != 0)) continue;
    const std::int64_t run = ends == 0 ? kWarp : __ffs(static_cast<int>(ends)) - 1;
    route.put(to + i * bytes, from + i * bytes, run * bytes);
  }
}

/// Whether this block's rank is to get anything over the network.
__device__ __forceinline__ bool goes_to(const Peers& peers, int rank, int to) {
  return to != rank && peers.window[to] == nullptr && has_peers(peers);
}
/// By all threads, after their puts.
__device__ __forceinline__ void signal_after_all(const Route& route, int ranks, int rank, Written what) {
  __syncthreads();
  if (threadIdx.x == 0) route.signal(signal_number(ranks, rank, what));
}

/// A rank's slots to those of other hosts: the entries of all, and the rows that they have experts for.
///   grid       (ranks)
///   traffic    as pack_slots, read by the network's card: 128 R1 tokens of which a rank gets a quarter 243 KB
///   limit      the network: 128 tokens to 24 ranks of other hosts 5.9 MB, 118 us with 400 Gbit/s; and its latency, 10
///   us
__global__ void __launch_bounds__(kThreads) put_slots_kernel(Slots s, Peers peers) {
  follow_previous_kernels();
  const int to = static_cast<int>(blockIdx.x);
  if (!goes_to(peers, s.rank, to)) return;
  const Route route(peers.network, s.rank, to);
  const std::int64_t part = s.part_at(s.rank);
  const std::byte* own = peers.window[s.rank] + part;
  if (threadIdx.x == 0) route.put(part + s.entries_at(0), part + s.entries_at(0), s.of_rank * s.entries_bytes());
  put_asked(route, s.of_rank, s.row_bytes(), part, part, [&](int t) {
    const SlotEntry* entry = entries_of_token(own, s, t);
    bool asked = false;
    for (int i = 0; i < s.entries; ++i) asked = asked || (entry[i].place >= 0 && rank_of(entry[i].place) == to);
    return asked;
  });
  signal_after_all(route, s.ranks, s.rank, Written::slots);
}

/// The answers to them.
///   shape      place [all, entries], as combine_slots() had it
///   grid       (ranks)
///   traffic    as combine_slots, read by the network's card
///   limit      the network: twice the time of put_slots(), answers being BF16
__global__ void __launch_bounds__(kThreads) put_answers_kernel(const std::int32_t* place, Slots s, Peers peers) {
  follow_previous_kernels();
  const int to = static_cast<int>(blockIdx.x);
  if (!goes_to(peers, s.rank, to)) return;
  const Route route(peers.network, s.rank, to);
  place += std::int64_t{to} * s.of_rank * s.entries;
  const std::int64_t at = peers.answers_at + s.first(s.rank) * s.answer_bytes(),
                     from = peers.sent_at + s.first(to) * s.answer_bytes();
  if (s.by_expert)
    put_asked(route, s.of_rank * s.entries, wire_row_bytes(s.back, s.hidden), at, from,
              [&](int i) { return place[i] >= 0; });
  else
    put_asked(route, s.of_rank, s.answer_bytes(), at, from, [&](int t) {
      bool here = false;
      for (int i = 0; i < s.entries; ++i) here = here || place[t * s.entries + i] >= 0;
      return here;
    });
  signal_after_all(route, s.ranks, s.rank, Written::answers);
}

/// Some bytes to each rank; at the start only, to see them arrive.
///   grid       (ranks)
__global__ void __launch_bounds__(kThreads)
    put_blocks_kernel(Peers peers, int ranks, int rank, Written what, std::int64_t from, std::int64_t step,
                      std::int64_t to_at, std::int64_t bytes) {
  follow_previous_kernels();
  const int to = static_cast<int>(blockIdx.x);
  if (!goes_to(peers, rank, to)) return;
  const Route route(peers.network, rank, to);
  if (threadIdx.x == 0) route.put(to_at, from + to * step, bytes);
  signal_after_all(route, ranks, rank, what);
}

/// Until all ranks of other hosts have signalled as often as this one has written, or all is to stop.
///   grid       one block, a thread for each rank
///   traffic    none: numbers that lie in this GPU's memory, asked for again and again
///   limit      latency: what is put is there some 10 us later
__global__ void __launch_bounds__(kMostPeers) wait_for_puts_kernel(Peers peers, int ranks, int rank, Written what) {
  follow_previous_kernels();
  const int other = static_cast<int>(threadIdx.x);
  if (other >= ranks || peers.window[other] != nullptr) return;
  const unsigned wanted = peers.written[static_cast<int>(what)];
  const Route route(peers.network, rank, other);
  const int number = signal_number(ranks, other, what);
  wait_for_count(peers, wanted, [&] { return route.signalled(number); });
}
#endif

}  // namespace

#ifdef SHOAL_PUTS
void list_windows(const Network& network, int ranks, std::byte** window, cudaStream_t stream) {
  launch("list_windows", list_windows_kernel, 1, kMostPeers, stream, network, ranks, window);
}

void put_slots(const Slots& slots, const Peers& peers, cudaStream_t stream) {
  launch("put_slots", put_slots_kernel, static_cast<unsigned>(slots.ranks), kThreads, stream, slots, peers);
}

void put_answers(const std::int32_t* place, const Slots& slots, const Peers& peers, cudaStream_t stream) {
  launch("put_answers", put_answers_kernel, static_cast<unsigned>(slots.ranks), kThreads, stream, place, slots, peers);
}

void put_blocks(const Peers& peers, int ranks, int rank, Written what, std::int64_t from, std::int64_t step,
                std::int64_t to, std::int64_t bytes, cudaStream_t stream) {
  launch("put_blocks", put_blocks_kernel, static_cast<unsigned>(ranks), kThreads, stream, peers, ranks, rank, what,
         from, step, to, bytes);
}

void wait_for_puts(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream) {
#ifdef SHOAL_CUDA_EMULATION
  // As in wait_for_peers().
  emulation::enqueue_until(stream, [=] {
    const unsigned wanted = peers.written[static_cast<int>(what)];
    for (int other = 0; other < ranks; ++other) {
      if (peers.window[other] != nullptr) continue;
      const unsigned there = Route(peers.network, rank, other).signalled(signal_number(ranks, other, what));
      if (static_cast<int>(there - wanted) < 0) return load_acquired(peers.stop) != 0;
    }
    return true;
  });
#endif
  launch("wait_for_puts", wait_for_puts_kernel, 1, kMostPeers, stream, peers, ranks, rank, what);
}
#else
// Nobody comes here: without NCCL's device interface there are no such windows (collectives/nccl/window.cpp).
namespace {
[[noreturn]] void not_built() { throw std::logic_error("built without NCCL's device interface"); }
}  // namespace
void list_windows(const Network&, int, std::byte**, cudaStream_t) { not_built(); }
void put_slots(const Slots&, const Peers&, cudaStream_t) { not_built(); }
void put_answers(const std::int32_t*, const Slots&, const Peers&, cudaStream_t) { not_built(); }
void put_blocks(const Peers&, int, int, Written, std::int64_t, std::int64_t, std::int64_t, std::int64_t, cudaStream_t) {
  not_built();
}
void wait_for_puts(const Peers&, int, int, Written, cudaStream_t) { not_built(); }
#endif

}  // namespace shoal::cuda
