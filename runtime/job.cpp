#include "runtime/job.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <thread>

#include "base/printable.h"
#include "collectives/hops.h"
#include "planner/memory.h"
#include "planner/placement.h"
#include "planner/plan.h"
#include "runtime/control_plane.h"
#include "runtime/host.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"
#include "runtime/random_weights.h"
#include "runtime/rank.h"
#include "runtime/rank_model.h"
#include "runtime/rank_work.h"

namespace shoal {
namespace {

/// The start-up summary: model, ranks, devices, memory by part.
std::string summarize(const ModelConfig& config, const JobOptions& options, const Communicator& comm,
                      const std::vector<WorkerReady>& ranks, int max_model_len, bool moves) {
  std::uint64_t weights = 0, kv = 0;
  std::int64_t tokens = 0;
  for (const WorkerReady& r : ranks) {
    weights = std::max(weights, r.weight_bytes);
    kv = std::max(kv, r.kv_bytes);
    tokens += static_cast<std::int64_t>(r.kv_pages) * kv_page_tokens;
  }
  std::string text =
      fmt::format("model     {} ({}, {} layers", options.model.string(), config.model_type, config.num_hidden_layers);
  if (config.n_routed_experts > 0)
    text += fmt::format(", {} experts, {} per token", config.n_routed_experts, config.num_experts_per_tok);
  text += fmt::format(")\nranks     {} over {}\n", ranks.size(), comm.description());
  if (config.n_routed_experts > 0 && Hops(comm.size(), comm.rank(), comm.ranks_per_host()).two())
    text += fmt::format("tokens    go once to each of {} hosts, and on to its {} ranks\n",
                        comm.size() / comm.ranks_per_host(), comm.ranks_per_host());
  text += fmt::format("device    {}\n", ranks.front().backend);
  text += fmt::format("memory    weights {:.3f} GB, KV cache {:.3f} GB on the largest rank\n",
                      static_cast<double>(weights) / 1e9, static_cast<double>(kv) / 1e9);
  text += fmt::format("context   {} tokens a request, {} tokens of KV cache in all\n", max_model_len, tokens);
  if (options.planned && options.planned->layout.sliced_experts)
    text += "experts   a slice of every expert on every rank\n";
  if (moves)
    text += fmt::format("experts   moved to even out loads, looked at every {} steps\n", options.rebalance_steps);
  else if (options.rebalance_steps > 0)
    text += "experts   stay where they are: --rebalance-steps takes several ranks, and a model with experts\n";
  if (options.recover && ranks.size() > 1)
    text += std::ranges::all_of(ranks, &WorkerReady::outlives_one)
                ? "losses    of a rank: the others have room for what it has\n"
                : "losses    of a rank would end the job: the others have no room for what it has\n";
  // Not refused: files write -1 for none, and programs that read token ids need no end.
  if (config.eos_token_ids.empty() && options.random_weights.empty())
    text += fmt::format(
        "ends      none: eos_token_id names no token of the {} in the vocabulary, so answers end at limits\n",
        config.vocab_size);
  if (options.mtp) text += "guesses   one token ahead, by the model's MTP layer\n";
  return text;
}

/// Rank 0 says why, once; everyone ends with the same code. Callable from any thread but the control plane's own, which
/// has to carry the news.
[[noreturn]] void end_job(Rank& rank, const Error& error) {
  static std::atomic<bool> ending = false;
  while (ending.exchange(true))
    std::this_thread::sleep_for(std::chrono::hours(1));  // the first cause is told, not its effects
  std::fprintf(stderr, "shoal: %s\n", printable(error.what()).c_str());
  rank.server->send_all(frame(Message::failed, encode(error)));
  std::this_thread::sleep_for(kHearing);
  end_now(error.exit_code);
}

/// A lost rank ends the job; `tell` hears first, so that it can tell those who wait for answers.
void end_on_loss(Rank& rank, std::function<void(const std::string&)> tell = {}) {
  // A host that goes silent is what mpirun never notices.
  const bool several_hosts = rank.launch.launcher == "Open MPI" && rank.launch.local_size < rank.comm->size();
  const std::string end = several_hosts ? "; ending the job (should mpirun stay, Ctrl-C ends it)" : "; ending the job";
  rank.server->on_lost([&rank, end, tell = std::move(tell)](int, const std::string& why) {
    if (tell) tell(why + end);
    std::thread([&rank, why, end] { end_job(rank, Error(why + end)); }).detach();
  });
}

/// Rank 0, beside its own worker: waits for the workers, then hands the job to `front`.
class Lead {
 public:
  Lead(Rank& rank, const JobOptions& options) : rank_(rank), options_(options) {}

  int serve(const std::function<int(Engine&)>& front) {
    ControlServer& server = *rank_.server;
    server.wait_for_all();
    if (options_.before_loading) options_.before_loading();
    const std::vector<WorkerReady> ready = wait_until_loaded();
    Engine engine;
    const ModelConfig config = engine.config = job_model_config(options_);
    const bool made_up = !options_.random_weights.empty();
    engine.model_name = made_up ? options_.model.string() : model_name(options_.model);
    engine.ranks = rank_.comm->size();
    if (!made_up) engine.tokenizer = read_tokenizer(options_.model);
    if (engine.tokenizer) engine.chat_template = read_chat_template(options_.model);

    CoordinatorOptions c;
    c.ranks = engine.ranks;
    Placement placement = job_placement(options_, config, engine.ranks);
    if (!options_.mtp) placement.experts.resize(static_cast<std::size_t>(config.num_hidden_layers));
    c.tensor_parallel = placement.tensor_parallel;
    c.page_tokens = kv_page_tokens;
    for (const WorkerReady& r : ready) c.kv_pages.push_back(r.kv_pages);
    const int largest = *(c.tensor_parallel ? std::min_element(c.kv_pages.begin(), c.kv_pages.end())
                                            : std::max_element(c.kv_pages.begin(), c.kv_pages.end()));
    const int allowed = options_.max_model_len > 0 ? options_.max_model_len : config.max_position_embeddings;
    c.max_model_len = engine.max_model_len =
        static_cast<int>(std::min<std::int64_t>(allowed, static_cast<std::int64_t>(largest) * kv_page_tokens));
    c.max_num_seqs = options_.max_num_seqs;
    c.max_batched_tokens = options_.max_batched_tokens;
    c.max_prefill_tokens = engine.max_prefill_tokens = options_.max_prefill_tokens;
    c.max_waiting = options_.max_waiting;
    engine.workers = ready;
    const auto counters = std::make_shared<StepCounters>(placement);
    engine.counters = counters;
    if (moves_experts(options_, placement))
      engine.rebalancer =
          std::make_shared<Rebalancer>(placement, options_.rebalance_steps, rank_.launch.local_size, config.n_group);
    c.on_result = [counters, rebalancer = engine.rebalancer](const StepResult& result, int rank) {
      counters->add(result, rank);
      if (rebalancer) rebalancer->add(result);
    };
    if (engine.rebalancer) c.move_experts = [rebalancer = engine.rebalancer] { return rebalancer->next(); };
    c.on_failed = [this](const Error& error) { end_job(rank_, error); };
    if (options_.recover && engine.ranks > 1) {
      engine.recovery = std::make_shared<Recovery>(server, config, placement, engine.rebalancer);
      c.regroup = [recovery = engine.recovery](const auto& give_up) { return recovery->regroup(give_up); };
    }
    engine.summary =
        summarize(config, options_, *rank_.comm, ready, engine.max_model_len, moves_experts(options_, placement));

    // Who hears of losses may hear of one while this ends by an exception.
    const auto coordinator = std::make_shared<Coordinator>(server, c);
    const auto tell = [weak = std::weak_ptr(coordinator)](const auto& what) {
      if (const auto still_there = weak.lock()) what(*still_there);
    };
    engine.coordinator = coordinator.get();
    if (engine.recovery) {
      server.survive_losses();
      server.on_lost([tell, recovery = engine.recovery](int rank, const std::string& why) {
        recovery->note_lost(rank, why);
        tell([](Coordinator& it) { it.rank_lost(); });
      });
    } else {
      end_on_loss(rank_, [tell](const std::string& why) { tell([&](Coordinator& it) { it.fail_all(why); }); });
    }
    const int code = front(engine);
    coordinator->stop();
    if (engine.recovery && engine.recovery->is_behind()) end_all(static_cast<ExitCode>(code));
    server.close();
    return code;
  }

 private:
  /// Ranks were lost at the very end: the others wait for them in a step that nobody asks for any more.
  [[noreturn]] void end_all(ExitCode code) {
    rank_.server->send_all(frame(Message::failed, encode(Error("the job ends", code))));
    std::this_thread::sleep_for(kHearing);
    end_now(code);
  }

  std::vector<WorkerReady> wait_until_loaded() {
    std::vector<WorkerReady> ready(static_cast<std::size_t>(rank_.comm->size()));
    for (std::size_t n = 0; n < ready.size(); ++n) {
      const auto received = rank_.server->receive();
      if (!received) fail("a rank was lost while the model was loading");
      if (received->frame.type == static_cast<std::uint16_t>(Message::failed))
        throw decode_failure(received->frame.payload);
      ready[static_cast<std::size_t>(received->rank)] = decode_worker_ready(received->frame.payload);
    }
    return ready;
  }

  Rank& rank_;
  const JobOptions& options_;
};

int run_ranks(int* argc, char*** argv, const JobOptions& options, const std::function<int(Engine&)>& front) {
  Rank rank = join_job(argc, argv, options);
  rank.client->on_lost([me = rank.number](int, const std::string& why) {
    if (me != 0) std::fprintf(stderr, "shoal: rank %d: lost rank 0 (%s); ending\n", me, why.c_str());
    end_now(ExitCode::failure);
  });
  rank.client->on_frame(static_cast<std::uint16_t>(Message::regroup), [&rank](const Frame& received) {
    rank.mpi->begin_epoch(decode_regroup(received.payload).epoch);
  });
  if (!rank.leads()) {
    RankWork(options, rank).run();
    return 0;
  }

  end_on_loss(rank);
  int code = 0;
  std::thread lead([&] {
    try {
      code = Lead(rank, options).serve(front);
    } catch (const Error& error) {
      end_job(rank, error);
    } catch (const std::exception& error) {
      end_job(rank, Error(error.what()));
    }
  });
  RankWork(options, rank).run();
  lead.join();
  return code;
}

}  // namespace

ModelConfig job_model_config(const JobOptions& options) {
  if (options.random_weights.empty()) return read_model_config(options.model);
  return random_model_config(options.model.string(), options.random_weights, options.layers);
}

Checkpoint job_checkpoint(const JobOptions& options) {
  if (options.random_weights.empty()) return Checkpoint::open(options.model);
  return random_checkpoint(job_model_config(options), options.random_weights);
}

namespace {

void choose_step(JobOptions& options) {
  const bool gpu = computes_on_gpu(options);
  if (options.max_batched_tokens == 0) options.max_batched_tokens = default_step_tokens(gpu);
  if (options.max_prefill_tokens == 0) options.max_prefill_tokens = default_prefill_tokens(gpu);
}
}  // namespace

int run_job(int* argc, char*** argv, const JobOptions& asked, const std::function<int(Engine&)>& front) {
  const int rank = read_launch_environment().rank;
  const auto failed = [rank](const char* why, ExitCode code) {
    const std::string who = rank == 0 ? "" : fmt::format("rank {} on {}: ", rank, host_name());
    std::fprintf(stderr, "shoal: %s%s\n", who.c_str(), printable(why).c_str());
    return static_cast<int>(code);
  };
  try {
    JobOptions options = asked;
    if (options.recover && read_launch_environment().ends_together)
      throw Error(
          "--recover: mpirun would end all ranks when one is lost; start it with 'mpirun --enable-recovery', or "
          "by launch/serve",
          ExitCode::usage);
    read_plan(options);
    choose_step(options);
    return run_ranks(argc, argv, options, front);
  } catch (const Error& error) {
    return failed(error.what(), error.exit_code);
  } catch (const std::exception& error) {
    return failed(error.what(), ExitCode::failure);
  }
}

}  // namespace shoal
