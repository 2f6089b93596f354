#pragma once
#include "collectives/communicator.h"
#include "collectives/mpi.h"
#include "kernels/backend.h"
#include "planner/cluster.h"

namespace shoal {

/// `--cluster auto`: the machines that this job's ranks run on, as a program finds them. Every rank calls it; all get
/// the same answer, a rank's figures being the lowest of any. Memory is what a rank's share of the free memory is now,
/// as `serve` reckons. The rest is measured, all ranks at once, in about a second: bytes of weights read in products
/// with one token, FLOP/s of products with many in BF16, FP8 and INT8, and what the ranks' exchange takes, within hosts
/// and between them. So the figures are what kernels achieve, not a datasheet's (Device::measured). `threads`: of a
/// rank; 0: this host's cores shared by its ranks.
Cluster measure_cluster(Communicator& comm, const LaunchEnvironment& launch, Compute compute, int threads = 0);

}  // namespace shoal
