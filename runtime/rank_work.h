#pragma once
#include <cstdint>
#include <future>
#include <memory>

#include "runtime/model.h"
#include "runtime/rank.h"
#include "runtime/rank_model.h"
#include "runtime/worker.h"

namespace shoal {

/// A rank's part of the job once all have joined, from its loading on: it computes what rank 0's frames say, one after
/// the other, and tells what came of it. Failures are told to rank 0, which ends the job or goes on without this rank.
class RankWork {
 public:
  RankWork(const JobOptions& options, Rank& rank) : options_(options), rank_(rank) {}
  /// Until the control plane ends.
  void run();

 private:
  void load();
  void finish_loading();
  std::uint64_t share_among(int left_here) const;
  void tell_ready(const RankModel& loaded, WorkerReady ready);
  void step(const StepPlan& plan);
  void regroup(const Regroup& to);

  const JobOptions& options_;
  Rank& rank_;
  std::uint64_t share_bytes_ = 0;  // of the device's memory, at the start
  ModelConfig config_;
  Answers answers_ = Answers::summed;  // stays as it was at the start, so that answers stay the same
  bool regroups_nccl_ = false;         // its GPU is still to join those of the others that are left
  bool cache_kept_ = true;             // since the last step, whatever became of the Regroups since
  std::future<RankModel> loading_;
  RankModel loaded_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace shoal
