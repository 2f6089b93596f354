#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "base/cuda/memory.h"
#include "base/cuda/wait.h"
#include "collectives/communicator.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

struct WindowOffer;

/// Memory of each rank's GPU that the GPUs of all others write into, by CUDA's IPC: of ranks of one host, over NVLink
/// or PCIe. While it lives, waits of the thread that made it end where the communicator's are to.
class PeerWindows {
 public:
  /// Windows of so many bytes, zeroed. Null on all ranks alike where there are none: several hosts, two ranks with one
  /// GPU (whose kernels would wait for each other's turn; `shared_gpus`: all the same), GPUs that do not reach each
  /// other, or what they write does not arrive. Every rank calls it, on the thread that waits for the GPU, with the
  /// same size. `retired`: where its memory goes in the end; it is freed at the next call, when all ranks that are left
  /// have closed it.
  static std::unique_ptr<PeerWindows> open(Communicator& comm, int device, bool shared_gpus, std::size_t answers_at,
                                           std::size_t bytes, std::vector<DeviceBlock>& retired, cudaStream_t stream);
  ~PeerWindows();
  PeerWindows(const PeerWindows&) = delete;
  PeerWindows& operator=(const PeerWindows&) = delete;

  std::byte* own() const { return own_.data(); }
  const Peers& peers() const { return peers_; }
  /// Kernels wait for other ranks no longer.
  void stop();

 private:
  PeerWindows(Communicator& comm, std::size_t answers_at, std::size_t bytes, std::vector<DeviceBlock>& retired);
  /// False where another rank's memory is out of reach.
  bool reach(const std::vector<WindowOffer>& offers, cudaStream_t stream);
  /// Whether what all ranks write arrives, within some seconds.
  bool prove(cudaStream_t stream);

  Communicator& comm_;
  std::vector<DeviceBlock>& retired_;
  DeviceBlock own_, list_, counts_;
  PinnedBlock stop_{sizeof(unsigned)};
  std::vector<void*> opened_;
  Peers peers_;
  std::optional<Watch> watch_;  // where nobody else looks
};

}  // namespace shoal::cuda
