#pragma once
#include "collectives/communicator.h"

namespace shoal {

/// Whether every rank says yes; the same answer on all.
inline bool all_agree(Communicator& comm, bool mine) {
  float refusals = mine ? 0.0f : 1.0f;
  comm.all_reduce_sum({&refusals, 1});
  return refusals == 0;
}

}  // namespace shoal
