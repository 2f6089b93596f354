#include "runtime/job.h"

#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "collectives/communicator.h"
#include "collectives/mpi.h"
#include "collectives/nccl/nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "planner/memory.h"
#include "planner/placement.h"
#include "planner/plan.h"
#include "runtime/control_plane.h"
#include "runtime/host.h"
#include "runtime/importance_recorder.h"
#include "runtime/model.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"
#include "runtime/random_weights.h"
#include "runtime/rank_model.h"
#include "runtime/worker.h"

namespace shoal {
namespace {

/// In which the other ranks hear why the job ends.
constexpr std::chrono::milliseconds kHearing{300};

/// Ends this rank at once, whatever its threads are doing: one of them may wait in MPI for a rank that is gone.
[[noreturn]] void end_now(ExitCode code) {
  std::fflush(nullptr);
  _exit(static_cast<int>(code));
}

/// What every rank of the job has before the model is read.
struct Rank {
  LaunchEnvironment launch;
  std::unique_ptr<MpiJob> mpi;
  std::unique_ptr<Communicator> start_up_comm;  // where `comm` is not the launcher's
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<ControlServer> server;  // rank 0
  std::unique_ptr<ControlClient> client;

  int number = 0;  // as the job was started with
  bool leads() const { return number == 0; }
};

/// Rank 0 tells all others, through MPI, where its control plane listens.
std::string share_contact(Communicator& comm, const std::string& contact) {
  std::array<char, 1024> text{};
  if (comm.rank() == 0) {
    if (contact.size() >= text.size()) fail("this host has too many network addresses ({} bytes)", contact.size());
    std::copy(contact.begin(), contact.end(), text.begin());
  }
  comm.broadcast(std::as_writable_bytes(std::span(text)), 0);
  return text.data();
}

/// After an error of NCCL, how long the control plane may take to find that a rank is gone, and say so.
constexpr double kNewsSeconds = 30;

/// Data between ranks goes from GPU to GPU; the launcher's communicator only brings them together.
void use_nccl(Rank& rank, const JobOptions& options) {
  const CudaDevices gpus = find_cuda_devices();
  if (options.device == "cpu")
    throw Error("--collectives nccl needs GPUs; it does not go with --device cpu", ExitCode::usage);
  if (gpus.count == 0) fail("--collectives nccl: {}; check nvidia-smi on {}", gpus.reason, host_name());
  rank.start_up_comm = std::move(rank.comm);
  try {
    rank.comm = make_nccl_communicator(
        load_nccl(), *rank.start_up_comm,
        {.device = gpu_of(rank.launch), .news_s = options.recover ? kNewsSeconds : NcclOptions{}.news_s});
  } catch (const LeftBehind&) {
    throw;
  } catch (const Error& error) {
    if (options.collectives == "nccl") throw;
    throw Error(fmt::format("{}; --collectives mpi does without NCCL", error.what()), error.exit_code);
  }
}

/// A number for the GPU that this rank computes on, the same in all processes that see it; 0: NCCL could not use it.
std::uint64_t gpu_number(const Rank& rank, const JobOptions& options) {
  if (!computes_on_gpu(options)) return 0;
  try {
    load_nccl();
  } catch (const Error&) {
    return 0;
  }
  const std::string place = cuda_device_place(gpu_of(rank.launch)), text = host_name() + " " + place;
  return place.empty() ? 0 : XXH3_64bits(text.data(), text.size()) | 1;
}

/// The same on all ranks: between GPUs where each rank has one of its own.
bool chooses_nccl(const Rank& rank, const JobOptions& options) {
  if (options.collectives != "auto") return options.collectives == "nccl";
  const auto ranks = static_cast<std::size_t>(rank.comm->size());
  if (ranks == 1) return false;
  constexpr std::size_t kParts = 4;  // of 16 bits, which floats hold
  std::array<float, kParts> mine;
  const std::uint64_t number = gpu_number(rank, options);
  for (std::size_t i = 0; i < kParts; ++i) mine[i] = static_cast<float>(number >> (16 * i) & 0xffff);
  std::vector<std::array<float, kParts>> all(ranks);
  const std::vector<std::size_t> counts(ranks, kParts);
  rank.comm->all_gather_v(mine, counts, {all.front().data(), ranks * kParts});
  std::ranges::sort(all);
  return all.front() != std::array<float, kParts>{} && std::ranges::adjacent_find(all) == all.end();
}

Rank join_job(int* argc, char*** argv, const JobOptions& options) {
  Rank rank;
  rank.launch = read_launch_environment();
  if (rank.launch.launched) {
    rank.mpi = std::make_unique<MpiJob>(argc, argv);
    if (options.recover) rank.mpi->expect_losses();
    if (options.collectives == "ucx") rank.mpi->use_ucx();
    rank.comm = rank.mpi->world();
  } else {
    rank.comm = make_self_communicator();
  }
  if (chooses_nccl(rank, options)) use_nccl(rank, options);
  rank.number = rank.comm->rank();
  if (rank.comm->rank() == 0) rank.server = std::make_unique<ControlServer>(rank.comm->size(), ControlOptions{});
  const std::string contact = share_contact(*rank.comm, rank.leads() ? rank.server->contact() : "");
  rank.client = std::make_unique<ControlClient>(rank.comm->rank(), contact, ControlOptions{});
  return rank;
}

bool moves_experts(const JobOptions& options, const Placement& placement) {
  return options.rebalance_steps > 0 && placement.ranks > 1 && !placement.tensor_parallel;
}

/// Answers stay the same, bit for bit, where experts have replicas or move only if none depends on where they are.
Answers answers_of(const JobOptions& options, const Placement& placement) {
  return placement.has_replicas() || moves_experts(options, placement) ? Answers::by_expert : Answers::summed;
}

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
  if (options.mtp) text += "guesses   one token ahead, by the model's MTP layer\n";
  return text;
}

Frame frame(Message type, std::vector<std::byte> payload) {
  return {static_cast<std::uint16_t>(type), std::move(payload)};
}

/// Rank 0 says why, once; everyone ends with the same code. Callable from any thread but the control plane's own, which
/// has to carry the news.
[[noreturn]] void end_job(Rank& rank, const Error& error) {
  static std::atomic<bool> ending = false;
  while (ending.exchange(true))
    std::this_thread::sleep_for(std::chrono::hours(1));  // the first cause is told, not its effects
  std::fprintf(stderr, "shoal: %s\n", error.what());
  rank.server->send_all(frame(Message::failed, encode(error)));
  std::this_thread::sleep_for(kHearing);
  end_now(error.exit_code);
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

    Coordinator coordinator(server, c);
    engine.coordinator = &coordinator;
    if (engine.recovery) {
      server.survive_losses();
      server.on_lost([&coordinator, recovery = engine.recovery](int rank, const std::string& why) {
        recovery->note_lost(rank, why);
        coordinator.rank_lost();
      });
    }
    const int code = front(engine);
    coordinator.stop();
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

/// A rank's part of the job, from its loading on.
class Work {
 public:
  Work(const JobOptions& options, Rank& rank) : options_(options), rank_(rank) {}

  void run() {
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

 private:
  /// Begins beside the control plane, so that this rank hears at once when another one fails.
  void load() {
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

  /// Its share of the device's memory when so many ranks of this host are left: what lost ones had is free.
  std::uint64_t share_among(int left_here) const {
    if (computes_on_gpu(options_)) return share_bytes_;
    return share_bytes_ / static_cast<std::uint64_t>(left_here) * static_cast<std::uint64_t>(rank_.launch.local_size);
  }

  void tell_ready(const RankModel& loaded, WorkerReady ready) {
    ready.weight_bytes = loaded.weights.bytes;
    ready.kv_bytes = loaded.cache->bytes();
    ready.kv_pages = loaded.cache->pages();
    ready.backend = loaded.backend->description();
    ready.host = host_name();
    rank_.client->send(frame(Message::ready, encode(ready)));
  }

  void finish_loading() {
    if (!loading_.valid()) return;
    loaded_ = loading_.get();
    answers_ = answers_of(options_, loaded_.placement);
  }

  void step(const StepPlan& plan) {
    finish_loading();
    try {
      if (!worker_) {  // the first step reaches all ranks together: the time for collective set-up
        if (regroups_nccl_) use_nccl(rank_, options_);
        regroups_nccl_ = false;
        model_ = std::make_unique<Model>(config_, std::move(loaded_.weights), loaded_.placement, *loaded_.backend,
                                         *rank_.comm, *loaded_.cache, options_.computes_in_16_bits(), answers_);
        const bool outputs = rank_.leads() || !loaded_.placement.tensor_parallel;
        worker_ = std::make_unique<Worker>(*model_, *loaded_.cache, logit_rows, outputs, loaded_.tokens);
      }
      rank_.client->send(frame(Message::result, encode(worker_->run(plan))));
    } catch (const LeftBehind&) {
      // Ranks were lost: a Regroup is the next frame, and the step will come again.
    }
  }

  void regroup(const Regroup& to) {
    finish_loading();
    if (model_) loaded_.weights = model_->take_weights();
    worker_.reset();
    model_.reset();
    regroups_nccl_ = regroups_nccl_ || rank_.start_up_comm;
    rank_.comm.reset();
    rank_.start_up_comm.reset();
    const std::vector<int> members(to.members.begin(), to.members.end());
    rank_.comm = rank_.mpi->group(members, to.epoch);
    WorkerReady ready{.epoch = to.epoch};
    ready.cache_kept = regroup_rank_model(loaded_, config_, job_checkpoint(options_), options_, rank_.launch,
                                          rank_.comm->rank(), to.placement, share_among(rank_.mpi->on_host(members)));
    tell_ready(loaded_, ready);
  }

  const JobOptions& options_;
  Rank& rank_;
  std::uint64_t share_bytes_ = 0;  // of the device's memory, at the start
  ModelConfig config_;
  Answers answers_ = Answers::summed;  // stays as it was at the start, so that answers stay the same
  bool regroups_nccl_ = false;         // its GPU is still to join those of the others that are left
  std::future<RankModel> loading_;
  RankModel loaded_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Worker> worker_;
};

/// Until all ranks have a control plane nothing notices one that is gone, and its launcher was told to leave the
/// others.
class StartLimit {
 public:
  explicit StartLimit(bool set) {
    if (!set) return;
    watch_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, kLongest, [this] { return joined_; })) return;
      std::fprintf(stderr,
                   "shoal: rank %d: not all ranks joined the job within %d s: one has ended, perhaps with a message "
                   "above, or hangs\n",
                   read_launch_environment().rank, static_cast<int>(kLongest.count()));
      end_now(ExitCode::failure);
    });
  }
  ~StartLimit() {
    if (!watch_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      joined_ = true;
    }
    changed_.notify_all();
    watch_.join();
  }
  StartLimit(const StartLimit&) = delete;
  StartLimit& operator=(const StartLimit&) = delete;

 private:
  static constexpr std::chrono::seconds kLongest{120};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool joined_ = false;
  std::thread watch_;
};

int run_ranks(int* argc, char*** argv, const JobOptions& options, const std::function<int(Engine&)>& front) {
  std::optional<StartLimit> start(options.recover);
  Rank rank = join_job(argc, argv, options);
  start.reset();
  rank.client->on_lost([me = rank.number](int, const std::string& why) {
    if (me != 0) std::fprintf(stderr, "shoal: rank %d: lost rank 0 (%s); ending\n", me, why.c_str());
    end_now(ExitCode::failure);
  });
  rank.client->on_frame(static_cast<std::uint16_t>(Message::regroup), [&rank](const Frame& received) {
    rank.mpi->begin_epoch(decode_regroup(received.payload).epoch);
  });
  if (!rank.leads()) {
    Work(options, rank).run();
    return 0;
  }

  // A host that goes silent is what mpirun never notices.
  const bool several_hosts = rank.launch.launcher == "Open MPI" && rank.launch.local_size < rank.comm->size();
  const std::string end = several_hosts ? "; ending the job (should mpirun stay, Ctrl-C ends it)" : "; ending the job";
  rank.server->on_lost([&rank, end](int, const std::string& why) {
    std::thread([&rank, why, end] { end_job(rank, Error(why + end)); }).detach();
  });
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
  Work(options, rank).run();
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
    std::fprintf(stderr, "shoal: %s%s\n", who.c_str(), why);
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
