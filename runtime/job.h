#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "planner/model_config.h"
#include "runtime/checkpoint.h"
#include "runtime/coordinator.h"
#include "runtime/importance.h"
#include "runtime/rebalancer.h"
#include "runtime/recovery.h"
#include "runtime/step_counters.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

namespace shoal {

struct Plan;

/// What `run`, `serve` and `bench` have in common: a model, on the ranks of this job.
struct JobOptions {
  std::filesystem::path model;
  std::filesystem::path plan;           // of `shoal plan --json`; empty: experts evenly, memory as it comes
  std::shared_ptr<const Plan> planned;  // what the file says, once read_plan has read it (planned_job.h)
  int max_model_len = 0;                // 0: what the model allows, less if memory is short
  int max_num_seqs = 256;
  int max_batched_tokens = 0;        // 0: 512, on GPUs 2,048
  int max_prefill_tokens = 0;        // 0: 256, on GPUs 512
  int max_waiting = 4096;            // requests that wait; more are refused
  double kv_cache_gb = 0;            // GB (1e9 bytes) of KV cache a rank; 0: a share of what is free
  int threads = 0;                   // of a rank; 0: this host's cores shared by its ranks
  bool pin = false;                  // each thread stays on a core
  std::string device = "auto";       // auto, cpu, cuda
  std::string collectives = "auto";  // auto, mpi, ucx, nccl
  std::string isa = "auto";
  Compute compute = Compute::f32;
  std::optional<KvType> kv_cache_dtype;  // not set: FP32 or BF16, as `compute`
  bool mtp = false;                      // speculative decoding with the model's MTP layer
  bool recover = false;        // go on without ranks that are lost (Recovery); the launcher must let the others live
  int rebalance_steps = 0;     // look at the experts' loads so often and move them; 0: never
  std::string random_weights;  // a precision (planner/precision.h): `model` is a card, its weights made up
  int layers = 0;              // with random weights: the first so many; 0: all
  bool quiet = false;
  /// Rank 0 calls it as soon as all ranks are there, while they read the model: what it throws ends the job. May be
  /// null.
  std::function<void()> before_loading;
  /// When the work is over, every rank calls it with what its part of the model was given (importance.h); null: nothing
  /// is recorded. Of rank 0 alone the result is of use.
  std::function<void(const Importance&)> on_importance;

  bool computes_in_16_bits() const { return compute != Compute::f32; }
  KvType kv_type() const { return kv_cache_dtype.value_or(computes_in_16_bits() ? KvType::bf16 : KvType::f32); }
};

/// Rank 0's view of a job that is up: what the command line and the API server stand on.
struct Engine {
  ModelConfig config;
  std::string model_name;                      // last part of the model's path
  std::shared_ptr<const Tokenizer> tokenizer;  // null: the model has none; token ids only
  std::optional<ChatTemplate> chat_template;
  int max_model_len = 0;
  int max_prefill_tokens = 0;  // of a step in which answers are generated
  int ranks = 1;
  std::string summary;               // several lines, for people
  std::vector<WorkerReady> workers;  // [ranks]
  std::shared_ptr<const StepCounters> counters;
  std::shared_ptr<Rebalancer> rebalancer;  // null: experts stay where they are
  std::shared_ptr<Recovery> recovery;      // null: a rank that is lost ends the job
  Coordinator* coordinator = nullptr;
};

/// The model of a job, read or (with random weights) made up.
ModelConfig job_model_config(const JobOptions& options);
Checkpoint job_checkpoint(const JobOptions& options);

/// Starts the job (every rank calls it): reads the launcher's environment, loads this rank's share of the model, then
/// works until the end. On rank 0 `front` runs on a thread of its own once all ranks are ready; when it returns, the
/// job ends on all ranks with its value. Returns the process's exit code; errors were printed, once, for people.
int run_job(int* argc, char*** argv, const JobOptions& options, const std::function<int(Engine&)>& front);

}  // namespace shoal
