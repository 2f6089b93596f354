#pragma once
#include <cstddef>
#include <memory>

#include "collectives/communicator.h"

namespace shoal {

class NcclLibrary;

struct NcclOptions {
  int device = 0;                // this rank's GPU
  std::size_t eager = 32 << 10;  // bytes of a record that travel with its length, at most; a multiple of 64
  double patience_s = 300;       // an exchange that takes longer is given up: a rank is gone
  double news_s = 0;             // after an error of NCCL, how long `others` may take to say that ranks were lost
};

/// Ranks whose data travels between their GPUs. Made by all ranks of `others`, which carries NCCL's id and records
/// among ranks of one host, and outlives it: where its waits are to end (LeftBehind), so do those for GPUs. Other
/// records lie in pinned host memory and are copied to and from the GPU; what device_transport() moves stays on GPUs.
/// wait() must be called in the same order on all ranks, as post() and exchange() are. A rank that is gone ends with an
/// Error what waits for it on the thread that made this (any wait for a GPU: cuda::Watch), by NCCL's own report or when
/// patience ends; the communicator is of no use then.
std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<NcclLibrary> library, Communicator& others,
                                                     const NcclOptions& options);

/// NCCL, from libnccl.so.2 as the loader finds it; Error where it is not there.
std::shared_ptr<NcclLibrary> load_nccl();

}  // namespace shoal
