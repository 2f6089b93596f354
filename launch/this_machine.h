#pragma once
#include "collectives/communicator.h"
#include "collectives/mpi.h"
#include "kernels/backend.h"
#include "planner/cluster.h"
#include "planner/precision.h"

namespace shoal {

/// `--cluster auto`: the machines that this job's ranks run on, as a program finds them. Every rank calls it; all get
/// the same answer, a rank's figures being the lowest of any. Memory is what a rank's share of the free memory is now,
/// as `serve` reckons. The rest is measured: products with weights of the types that the model has, read for one
/// token, for a few and multiplied with many (linear layers, and experts of the model's own shape), all ranks at once
/// and one alone while the others wait; and what the exchange of a layer with experts takes, within hosts and between
/// them. That takes a second or two for each of the types; rank 0 says on stderr what it is at. So the figures are what
/// kernels achieve, not a datasheet's (Device::measured), and ranks that share cores or bandwidth have shares. `pin`:
/// each thread stays on a core. Error (wrong usage) where hosts have not as many ranks each, numbered in a row.
Cluster measure_cluster(Communicator& comm, const LaunchEnvironment& launch, Compute compute, const ModelConfig& config,
                        const Precision& precision, bool pin = false);

}  // namespace shoal
