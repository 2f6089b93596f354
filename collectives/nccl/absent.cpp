#include "base/error.h"
#include "collectives/nccl/nccl.h"

// What a build without CUDA or NCCL says instead.
namespace shoal {

std::shared_ptr<NcclLibrary> load_nccl() {
  throw Error("--collectives nccl is not in this build: CUDA and nccl.h were not found when it was made",
              ExitCode::usage);
}

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<NcclLibrary>, Communicator&, const NcclOptions&) {
  fail("this build has no NCCL");
}

}  // namespace shoal
