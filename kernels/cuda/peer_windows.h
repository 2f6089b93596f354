#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cuda/memory.h"
#include "base/cuda/wait.h"
#include "collectives/communicator.h"
#include "collectives/device_transport.h"
#include "kernels/cuda/operations.h"

namespace shoal::cuda {

struct WindowOffer;

/// Memory of each rank's GPU that the GPUs of all others write into. While it lives, waits of the thread that made it
/// end where the communicator's are to.
class PeerWindows {
 public:
  struct Room {
    std::size_t slots, answers;  // of all ranks, bytes
  };
  /// By CUDA's IPC, of ranks of one host, over NVLink or PCIe; zeroed. Null on all ranks alike where there are none:
  /// several hosts, two ranks with one GPU (whose kernels would wait for each other's turn; `shared_gpus`: all the
  /// same), GPUs that do not reach each other, or what they write does not arrive. Every rank calls it, on the thread
  /// that waits for the GPU, with the same room. `retired`: where its memory goes in the end; it is freed at the next
  /// call, when all ranks that are left have closed it.
  static std::unique_ptr<PeerWindows> open(Communicator& comm, int device, bool shared_gpus, Room room,
                                           std::vector<DeviceBlock>& retired, cudaStream_t stream);
  /// By the communicator's device_transport(), of any ranks whose GPUs reach each other by stores or over a network;
  /// else likewise. `why_not`: as far as this rank knows.
  static std::unique_ptr<PeerWindows> open_over_network(Communicator& comm, Room room, cudaStream_t stream,
                                                        std::string& why_not);
  ~PeerWindows();
  PeerWindows(const PeerWindows&) = delete;
  PeerWindows& operator=(const PeerWindows&) = delete;

  std::byte* own() const { return own_; }
  /// Its `network` is null where stores reach all ranks.
  const Peers& peers() const { return peers_; }
  /// Kernels wait for other ranks no longer.
  void stop();

 private:
  /// Where slots and answers lie in a window, and what is on its way over the network.
  struct Layout {
    Layout(Room room, int ranks, bool over_network);
    std::size_t slots_of_rank, answers_of_rank;  // bytes
    std::size_t answers_at, sent_at, arrivals_at, bytes;
  };
  PeerWindows(Communicator& comm, const Layout& layout);
  /// False where another rank's memory is out of reach.
  bool reach(const std::vector<WindowOffer>& offers, cudaStream_t stream);
  void reach_over_network(cudaStream_t stream);
  /// Nothing is written, and all is zero before others write.
  void clear(cudaStream_t stream);
  /// Whether what all ranks write arrives, within some seconds.
  bool prove(cudaStream_t stream);

  Communicator& comm_;
  const Layout layout_;
  std::vector<DeviceBlock>* retired_ = nullptr;
  DeviceBlock block_;                         // by CUDA's IPC
  std::shared_ptr<DeviceWindow> of_network_;  // or
  std::byte* own_ = nullptr;
  DeviceBlock list_, counts_;
  PinnedBlock stop_{sizeof(unsigned)};
  std::vector<void*> opened_;
  std::vector<int> far_;  // ranks that stores do not reach
  Peers peers_;
  std::optional<Watch> watch_;  // where nobody else looks
};

}  // namespace shoal::cuda
