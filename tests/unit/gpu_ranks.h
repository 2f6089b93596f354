#pragma once
#include "collectives/nccl/nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/token_exchange.h"
#include "tests/unit/nccl_stand_in.h"

namespace shoal::test {

/// `body` on every rank.
inline void over_gpus(int ranks, const std::function<void(Communicator&)>& body) {
  const auto library = std::make_shared<NcclStandIn>(ranks);
  run_in_process(ranks, [&](Communicator& others) {
    body(*make_nccl_communicator(library, others, {.eager = 256, .patience_s = 60}));
  });
}

/// Rows in a back end's memory that hold what `host` does.
class DeviceRows {
 public:
  DeviceRows(Backend& backend, Rows<const float> host)
      : memory_(backend.allocate(static_cast<std::size_t>(host.rows * host.cols) * sizeof(float))),
        rows_(static_cast<float*>(memory_.get()), host.rows, host.cols) {
    backend.from_host(host, rows_);
  }
  Rows<float> rows() const { return rows_; }

 private:
  std::shared_ptr<void> memory_;
  Rows<float> rows_;
};

}  // namespace shoal::test
