// Built in place of the UCX wire where its headers were not found.
#include "base/error.h"
#include "collectives/ucx/ucx.h"

namespace shoal {

std::unique_ptr<Wire> make_ucx_wire(MpiGroup&) {
  throw Error("--collectives ucx: this program was built without UCX; install libucx-dev and build again",
              ExitCode::usage);
}

}  // namespace shoal
