#pragma once
#include <memory>
#include <string>

#include "kernels/backend.h"

namespace shoal {

struct CudaOptions {
  int device = 0;
  Compute compute = Compute::f32;
  bool self_check = true;  // compare fast kernels with simple ones first, and do without those that differ
  /// GPUs write into each other's memory, where they can: those of one host by CUDA's IPC, which is not tried with
  /// over_network; else by NCCL.
  enum class PeerMemory { no, of_other_gpus, even_of_this_one, over_network };
  PeerMemory peer_memory = PeerMemory::of_other_gpus;
  std::int64_t most_parts = std::int64_t{64} << 20;  // floats of partial attention results at a time
};

/// GPUs that this process can use; 0 where there is none, and then why: "no NVIDIA driver is loaded", ...
struct CudaDevices {
  int count = 0;
  std::string reason;
};
CudaDevices find_cuda_devices();
/// Where on its host a GPU is, whatever number it has in this process ("0000:65:00.0"); empty where nobody says.
std::string cuda_device_place(int device);

/// The GPU's form of every operation. Rows, caches and what allocate() gives lie in device memory; lists of ids, slots
/// and queries, the results of route() and (but from its own exchange) the rows of experts() in host memory. Operations
/// are put on one stream and return at once; to_host(), route() and experts() of host memory wait for it.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

}  // namespace shoal
