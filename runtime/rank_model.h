#pragma once
#include <cstdint>
#include <memory>

#include "collectives/mpi.h"
#include "kernels/backend.h"
#include "planner/placement.h"
#include "runtime/checkpoint.h"
#include "runtime/grammar/token_table.h"
#include "runtime/job.h"
#include "runtime/kv_cache.h"
#include "runtime/weights.h"

namespace shoal {

class ImportanceRecorder;

/// Whether ranks compute on GPUs: where there are any, unless the CPU is asked for.
bool computes_on_gpu(const JobOptions& options);

/// The GPU of a rank: the host's ranks take its GPUs in turn.
int gpu_of(const LaunchEnvironment& launch);

/// What computes on a rank, and the part of its memory that the rank may take.
struct RankDevice {
  std::unique_ptr<Backend> backend;
  std::uint64_t share_bytes = 0;  // of what is free there, for weights, KV cache and all
};

/// Every rank of a host calls it before one of them loads: what is free is shared out evenly, and a rank that looked
/// later would miss what others have taken. Makes no collective call. Error where a GPU is asked for and absent.
RankDevice open_device(const JobOptions& options, const LaunchEnvironment& launch);

/// One rank's share of the model, read and packed, with what computes on it and room for its sequences.
struct RankModel {
  int rank = 0;
  Placement placement;
  std::unique_ptr<Backend> backend;
  const ImportanceRecorder* recorder = nullptr;  // the backend, where importance is asked for
  std::unique_ptr<KvCache> cache;
  ModelWeights weights;
  std::shared_ptr<const grammar::TokenTable> tokens;  // null: the model has no tokenizer
};

/// Makes no collective call, so it may run on any thread. Error where what is asked for does not go together, or (does
/// not fit) where memory is short, before anything is read.
RankModel load_rank_model(const ModelConfig& config, const Checkpoint& checkpoint, const JobOptions& options,
                          const LaunchEnvironment& launch, int rank, const Placement& placement, RankDevice device);

/// Whether `rank` would have room for its part if another one were lost (its KV cache made smaller, if need be).
bool outlives_one(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                  std::uint64_t share_bytes);

/// Ranks were lost: makes `loaded` what `rank` has under `placement`. Whole experts that are missing are read, what is
/// sliced is read anew. The KV cache stays as it is, with what is in it (then true), unless its rows are sliced or its
/// memory is needed for weights. `share_bytes`: of its device's memory, from now on. Makes no collective call. Errors
/// as load_rank_model's; `loaded` is then of no use.
bool regroup_rank_model(RankModel& loaded, const ModelConfig& config, const Checkpoint& checkpoint,
                        const JobOptions& options, const LaunchEnvironment& launch, int rank, int ranks_per_host,
                        const Placement& placement, std::uint64_t share_bytes);

}  // namespace shoal
