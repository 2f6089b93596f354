#pragma once
#include "kernels/cuda/device.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

/// Where `rank` is told how often each rank has written.
__device__ __forceinline__ unsigned* arrivals(const Peers& peers, int ranks, int rank, Written what) {
  return reinterpret_cast<unsigned*>(peers.window[rank] + peers.arrivals_at) + static_cast<int>(what) * ranks;
}

/// Whether there are peers to write to.
__device__ __forceinline__ bool has_peers(const Peers& peers) { return peers.window != nullptr && *peers.stopped == 0; }

/// Until count() has come to `wanted`, or all is to stop.
template <class Count>
__device__ __forceinline__ void wait_for_count(const Peers& peers, unsigned wanted, const Count& count) {
  for (unsigned polls = 0; static_cast<int>(count() - wanted) < 0; ++polls) {
    // The host's memory is far: it is looked at now and then, and for all kernels behind this one.
    if (polls % 64 == 63 && load_acquired(peers.stop) != 0) {
      *peers.stopped = 1;
      return;
    }
    __nanosleep(40);
  }
}

/// Every thread of every block calls it after all it has written: the last block tells the peers.
__device__ __forceinline__ void tell_when_written(const Peers& peers, int ranks, int rank, Written what) {
  struct Shared {
    unsigned before;
  };
  Shared& s = shared<Shared>();
  const int w = static_cast<int>(what);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence_system();  // of what all threads have written
    s.before = atomicAdd(&peers.blocks[w], 1u);
    __threadfence_system();  // of what other blocks have
  }
  __syncthreads();
  if (s.before + 1 < gridDim.x * gridDim.y) return;
  const unsigned now = peers.written[w] + 1;
  const bool tells = has_peers(peers);
  for (int r = static_cast<int>(threadIdx.x); r < ranks; r += static_cast<int>(blockDim.x))
    if (r == rank || (tells && peers.window[r] != nullptr)) store_released(arrivals(peers, ranks, r, what) + rank, now);
  __syncthreads();  // all have read it
  if (threadIdx.x > 0) return;
  peers.written[w] = now;
  peers.blocks[w] = 0;
}

}  // namespace shoal::cuda
