#pragma once
#include <cstdint>

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

/// Throws Error (does not fit) with the sum written out, and changes that would make it fit, where what `rank` is about
/// to hold, with the KV cache that was asked for or else of one sequence of `max_model_len` tokens (0: a page), is more
/// than `share_bytes`, its part of the host's free memory.
void refuse_what_does_not_fit(const ModelConfig& config, const JobOptions& options, const Placement& placement,
                              int rank, std::uint64_t share_bytes);

}  // namespace shoal
