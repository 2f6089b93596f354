#pragma once
#include "collectives/nccl/nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/unit/nccl_stand_in.h"

namespace shoal::test {

/// `body` on every rank. `neighbours`: of NCCL's windows.
inline void over_gpus(int ranks, const std::function<void(Communicator&)>& body, int ranks_per_host = 1,
                      int neighbours = 0) {
  const auto library = std::make_shared<NcclStandIn>(ranks, neighbours);
  run_in_process(
      ranks,
      [&](Communicator& others) { body(*make_nccl_communicator(library, others, {.eager = 256, .patience_s = 60})); },
      ranks_per_host, emulation::go_on);
}

}  // namespace shoal::test
