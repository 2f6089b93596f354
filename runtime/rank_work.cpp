#include "runtime/rank_work.h"

#include <functional>
#include <thread>
#include <utility>

#include "runtime/host.h"
#include "runtime/importance_recorder.h"
#include "runtime/planned_job.h"

namespace shoal {
namespace {

/// Runs a part of the work; what it throws is told to rank 0, which ends the job.
void report_failure(Rank& rank, const std::function<void()>& part, Message as = Message::failed) {
  const auto report = [&](const Error& error) { rank.client->send(frame(as, encode(error))); };
  try {
    part();
  } catch (const Error& error) {
    report(error);
  } catch (const std::exception& error) {
    report(Error(fmt::format("rank {} on {}: {}", rank.number, host_name(), error.what())));
  }
}

}  // namespace

void RankWork::run() {
  ControlClient& client = *rank_.client;
  load();
  while (auto received = client.receive()) {
    switch (static_cast<Message>(received->type)) {
      case Message::failed:
        if (!rank_.leads()) end_now(decode_failure(received->payload).exit_code);
        break;  // rank 0 is telling the others, and ends last
      case Message::regroup:
        report_failure(
            rank_, [&] { regroup(decode_regroup(received->payload)); }, Message::cannot_regroup);
        break;
      default:
        report_failure(rank_, [&] { step(decode_step_plan(received->payload)); });
    }
  }
  if (options_.on_importance && model_)
    options_.on_importance(loaded_.recorder->collect(config_, model_->weights(), loaded_.placement, *rank_.comm));
}

/// Begins beside the control plane, so that this rank hears at once when another one fails.
void RankWork::load() {
  RankDevice device;
  report_failure(rank_, [&] { device = open_device(options_, rank_.launch); });
  share_bytes_ = device.share_bytes;
  // Nobody loads before all have seen what is free; a rank that failed does not keep them here.
  rank_.comm->barrier();
  loading_ = std::async(std::launch::async, [this, opened = std::move(device)]() mutable {
    RankModel loaded;
    if (!opened.backend) return loaded;
    report_failure(rank_, [&] {
      config_ = job_model_config(options_);
      loaded = load_rank_model(config_, job_checkpoint(options_), options_, rank_.launch, rank_.comm->rank(),
                               job_placement(options_, config_, rank_.comm->size()), std::move(opened));
      WorkerReady ready;
      const int ranks = loaded.placement.ranks;
      if (options_.recover && ranks > 1)
        ready.outlives_one = outlives_one(config_, options_, loaded.placement, loaded.rank,
                                          share_among(rank_.launch.local_size - (ranks == rank_.launch.local_size)));
      tell_ready(loaded, ready);
    });
    return loaded;
  });
}

void RankWork::finish_loading() {
  if (!loading_.valid()) return;
  loaded_ = loading_.get();
  answers_ = answers_of(options_, loaded_.placement);
}

/// Its share of the device's memory when so many ranks of this host are left: what lost ones had is free.
std::uint64_t RankWork::share_among(int left_here) const {
  if (computes_on_gpu(options_)) return share_bytes_;
  return share_bytes_ / static_cast<std::uint64_t>(left_here) * static_cast<std::uint64_t>(rank_.launch.local_size);
}

void RankWork::tell_ready(const RankModel& loaded, WorkerReady ready) {
  ready.weight_bytes = loaded.weights.bytes;
  ready.kv_bytes = loaded.cache->bytes();
  ready.kv_pages = loaded.cache->pages();
  ready.backend = loaded.backend->description();
  ready.host = host_name();
  rank_.client->send(frame(Message::ready, encode(ready)));
}

void RankWork::step(const StepPlan& plan) {
  finish_loading();
  cache_kept_ = true;  // rank 0 knows what became of it
  try {
    if (!worker_) {  // the first step reaches all ranks together: the time for collective set-up
      if (regroups_nccl_) use_nccl(rank_, options_);
      regroups_nccl_ = false;
      model_ = std::make_unique<Model>(config_, std::move(loaded_.weights), loaded_.placement, *loaded_.backend,
                                       *rank_.comm, *loaded_.cache, options_.computes_in_16_bits(), answers_);
      const bool outputs = rank_.leads() || !loaded_.placement.tensor_parallel;
      worker_ =
          std::make_unique<Worker>(*model_, *loaded_.backend, *loaded_.cache, logit_rows, outputs, loaded_.tokens);
    }
    rank_.client->send(frame(Message::result, encode(worker_->run(plan))));
  } catch (const LeftBehind&) {
    // Ranks were lost: a Regroup is the next frame, and the step will come again.
  }
}

void RankWork::regroup(const Regroup& to) {
  finish_loading();
  if (model_) loaded_.weights = model_->take_weights();
  worker_.reset();
  model_.reset();
  regroups_nccl_ = regroups_nccl_ || rank_.start_up_comm;
  rank_.comm.reset();
  rank_.start_up_comm.reset();
  const std::vector<int> members(to.members.begin(), to.members.end());
  rank_.comm = rank_.mpi->group(members, to.epoch);
  const bool kept =
      regroup_rank_model(loaded_, config_, job_checkpoint(options_), options_, rank_.launch, rank_.comm->rank(),
                         rank_.comm->ranks_per_host(), to.placement, share_among(rank_.mpi->on_host(members)));
  cache_kept_ = cache_kept_ && kept;
  WorkerReady ready{.epoch = to.epoch, .cache_kept = cache_kept_};
  tell_ready(loaded_, ready);
}

}  // namespace shoal
