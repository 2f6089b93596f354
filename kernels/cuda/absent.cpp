#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"

// What a build without CUDA says instead.
namespace shoal {

CudaDevices find_cuda_devices() { return {0, "this build has no GPU back end (no nvcc was found when it was made)"}; }

std::string cuda_device_place(int) { return ""; }

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions&) { fail("{}", find_cuda_devices().reason); }

}  // namespace shoal
