#pragma once
#include "collectives/communicator.h"
#include "collectives/expert_map.h"
#include "kernels/backend.h"
#include "planner/expert_placement.h"
#include "runtime/weights.h"

namespace shoal {

/// The same for the exchange: a rank's experts of a layer are numbered in ascending order of their global ids.
ExpertMap expert_map(const LayerPlacement& placement);

/// The same where every rank has a slice of every expert: slice r of expert e, on rank r, is number e * ranks + r.
ExpertMap slice_map(int experts, int ranks);

/// Experts whose memory move_experts takes for a while, of the largest on a rank: in two exchanges that follow each
/// other one goes out and one comes in, and what has come is there before another goes.
constexpr int kExpertsOnTheWay = 5;

/// Puts the experts of a layer where `placement` says: ranks that do not hold an expert yet get its weights, as they
/// lie in memory, from one that does, and those that are to hold it no longer drop it. All ranks call it at the same
/// time with the same placement; one expert at a time goes from and to a rank. `backend` has placed the matrices, if it
/// does, and places those that arrive. Where it throws, `weights` has no experts left.
void move_experts(MoeWeights& weights, const LayerPlacement& placement, Communicator& comm, Backend& backend);

}  // namespace shoal
