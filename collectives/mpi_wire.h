#pragma once
#include <mpi.h>

#include <memory>

#include "collectives/messages.h"

namespace shoal {

/// Messages of MPI on a communicator of the job's ranks.
std::unique_ptr<Wire> make_mpi_wire(MPI_Comm comm);

}  // namespace shoal
