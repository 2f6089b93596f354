#pragma once
#include <memory>

#include "collectives/messages.h"

namespace shoal {

class MpiGroup;

/// Messages of UCX: over RDMA where a host has it, else over TCP. Made by all ranks of the job, whose addresses MPI
/// carries; what is sent later needs MPI no more. A peer that is gone ends its messages with an error, which is thrown
/// only if nobody says for half a minute that ranks were lost. Error where UCX is not installed.
std::unique_ptr<Wire> make_ucx_wire(MpiGroup& everyone);

}  // namespace shoal
