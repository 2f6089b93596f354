#pragma once
#include <mpi.h>

#include <memory>
#include <string>

#include "collectives/messages.h"

namespace shoal {

/// "Open MPI 4.1.4".
std::string mpi_library_name();

/// Messages of MPI on a communicator of the job's ranks.
std::unique_ptr<Wire> make_mpi_wire(MPI_Comm comm);

}  // namespace shoal
