#pragma once
#include <cstdint>

#include "collectives/dispatch_plan.h"
#include "planner/memory.h"
#include "planner/placement.h"
#include "runtime/job.h"

namespace shoal {

/// Reads the file that `options.plan` names, once for all that follows, and takes over its context, step size, KV
/// cache, computing type and speculation. No plan: nothing. Error names the file and the field.
void read_plan(JobOptions& options);

/// Where a job's experts and dense parts go: as the plan that was read says, evenly where there is none. Error (wrong
/// usage) where the plan is for another model or another number of ranks, or asks for what ranks cannot do yet (dense
/// parts of an expert model cut over ranks).
Placement job_placement(const JobOptions& options, const ModelConfig& config, int ranks);

/// Whether experts move while the job runs.
bool moves_experts(const JobOptions& options, const Placement& placement);
/// Answers stay the same, bit for bit, where experts have replicas or move only if none depends on where they are.
Answers answers_of(const JobOptions& options, const Placement& placement);

/// What `rank` is about to hold in the memory of its device, with the KV cache that was asked for or else of one
/// sequence of `max_model_len` tokens (0: a page). Throws Error (does not fit) with the sum written out, and changes
/// that would make it fit, where that is more than `share_bytes`, its part of the free memory there.
RankMemory start_memory(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                        int ranks_per_host, Device::Kind device, std::uint64_t share_bytes);

}  // namespace shoal
