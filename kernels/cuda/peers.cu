#include "kernels/cuda/peer_arrivals.h"

// What ranks that write into each other's memory know of each other.
namespace shoal::cuda {
namespace {

/// Until all ranks that store into this one's window have done so as often as this one, or all is to stop.
///   grid       one block, a thread for each rank
///   traffic    none: a number that lies in this GPU's memory, asked for again and again
///   limit      latency: a write over NVLink takes some 1 us to be seen
__global__ void __launch_bounds__(kMostPeers) wait_for_peers_kernel(Peers peers, int ranks, int rank, Written what) {
  follow_previous_kernels();
  const int other = static_cast<int>(threadIdx.x);
  if (other >= ranks || peers.window[other] == nullptr) return;
  const unsigned wanted = peers.written[static_cast<int>(what)];
  const unsigned* arrived = arrivals(peers, ranks, rank, what) + other;
  wait_for_count(peers, wanted, [&] { return load_acquired(arrived); });
}

__global__ void __launch_bounds__(kMostPeers) tell_peers_kernel(Peers peers, int ranks, int rank, Written what) {
  follow_previous_kernels();
  tell_when_written(peers, ranks, rank, what);
}

}  // namespace

void wait_for_peers(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream) {
#ifdef SHOAL_CUDA_EMULATION
  // A GPU waits beside its host; here the host's thread is the GPU, and must not be held up.
  emulation::enqueue_until(stream, [=] {
    const unsigned wanted = peers.written[static_cast<int>(what)];
    for (int other = 0; other < ranks; ++other)
      if (peers.window[other] != nullptr &&
          static_cast<int>(load_acquired(arrivals(peers, ranks, rank, what) + other) - wanted) < 0)
        return load_acquired(peers.stop) != 0;
    return true;
  });
#endif
  launch("wait_for_peers", wait_for_peers_kernel, 1, kMostPeers, stream, peers, ranks, rank, what);
}

void tell_peers(const Peers& peers, int ranks, int rank, Written what, cudaStream_t stream) {
  launch("tell_peers", tell_peers_kernel, 1, kMostPeers, stream, peers, ranks, rank, what);
}

}  // namespace shoal::cuda
