#include "runtime/job.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <future>
#include <thread>

#include "collectives/communicator.h"
#include "collectives/mpi.h"
#include "collectives/nccl/nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "planner/memory.h"
#include "planner/placement.h"
#include "planner/plan.h"
#include "runtime/checkpoint.h"
#include "runtime/control_plane.h"
#include "runtime/host_memory.h"
#include "runtime/importance_recorder.h"
#include "runtime/kv_cache.h"
#include "runtime/model.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"
#include "runtime/random_weights.h"
#include "runtime/weights.h"
#include "runtime/worker.h"

namespace shoal {
namespace {

constexpr int kPageTokens = 16;
constexpr int kMaxLogitRows = 32;

/// Ends this rank at once, whatever its threads are doing: one of them may wait in MPI for a rank that is gone.
[[noreturn]] void end_now(ExitCode code) {
  std::fflush(nullptr);
  _exit(static_cast<int>(code));
}

bool bf16(const JobOptions& options) { return options.compute != Compute::f32; }

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

/// What every rank of the job has before the model is read.
struct Rank {
  LaunchEnvironment launch;
  std::unique_ptr<MpiJob> mpi;
  std::unique_ptr<Communicator> start_up_comm;  // where `comm` is not the launcher's
  std::unique_ptr<Communicator> comm;
  std::unique_ptr<ControlServer> server;  // rank 0
  std::unique_ptr<ControlClient> client;

  bool leads() const { return comm->rank() == 0; }
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

/// The GPU of a rank: the host's ranks take its GPUs in turn.
int gpu_of(const LaunchEnvironment& launch, const CudaDevices& gpus) { return launch.local_rank % gpus.count; }

/// Data between ranks goes from GPU to GPU; the launcher's communicator only brings them together.
void use_nccl(Rank& rank, const JobOptions& options) {
  const CudaDevices gpus = find_cuda_devices();
  if (options.device == "cpu")
    throw Error("--collectives nccl needs GPUs; it does not go with --device cpu", ExitCode::usage);
  if (gpus.count == 0) fail("--collectives nccl: {}; check nvidia-smi on {}", gpus.reason, host_name());
  rank.start_up_comm = std::move(rank.comm);
  rank.comm = make_nccl_communicator(load_nccl(), *rank.start_up_comm, {.device = gpu_of(rank.launch, gpus)});
}

Rank join_job(int* argc, char*** argv, const JobOptions& options) {
  Rank rank;
  rank.launch = read_launch_environment();
  if (options.collectives != "auto" && options.collectives != "mpi" && options.collectives != "nccl")
    throw Error("--collectives " + options.collectives + ": there are auto, mpi and nccl", ExitCode::usage);
  if (rank.launch.launched) {
    rank.mpi = std::make_unique<MpiJob>(argc, argv);
    rank.comm = rank.mpi->world();
  } else {
    rank.comm = make_self_communicator();
  }
  if (options.collectives == "nccl") use_nccl(rank, options);
  if (rank.comm->rank() == 0) rank.server = std::make_unique<ControlServer>(rank.comm->size(), ControlOptions{});
  const std::string contact = share_contact(*rank.comm, rank.leads() ? rank.server->contact() : "");
  rank.client = std::make_unique<ControlClient>(rank.comm->rank(), contact, ControlOptions{});
  return rank;
}

/// One rank's share of the model, read and packed.
struct LoadedModel {
  Placement placement;
  std::unique_ptr<Backend> backend;
  const ImportanceRecorder* recorder = nullptr;  // the backend, where importance is asked for
  std::unique_ptr<KvCache> cache;
  ModelWeights weights;
  std::shared_ptr<const grammar::TokenTable> tokens;  // null: the model has no tokenizer
};

/// What computes on this rank: a GPU where there is one, unless the CPU is asked for.
std::unique_ptr<Backend> make_backend(const JobOptions& options, const LaunchEnvironment& launch) {
  if (options.device != "cpu") {
    const CudaDevices gpus = find_cuda_devices();
    if (gpus.count > 0) return make_cuda_backend({gpu_of(launch, gpus), options.compute});
    if (options.device == "cuda")
      throw Error(
          fmt::format("--device cuda: {}; check nvidia-smi on {}, or use --device cpu", gpus.reason, host_name()));
  }
  CpuOptions cpu{.threads = options.threads, .pin = options.pin, .compute = options.compute, .isa = options.isa};
  cpu.local_rank = launch.local_rank;
  cpu.local_ranks = launch.local_size;
  return make_cpu_backend(cpu);
}

/// Bytes of its device's memory that this rank may still use: its GPU's, or the host's, shared with the other ranks
/// there.
std::uint64_t share_of_memory(const Backend& backend, const LaunchEnvironment& launch) {
  int sharers = std::max(1, launch.local_size);
  const std::optional<std::uint64_t> on_gpu = backend.free_bytes();
  if (on_gpu) {
    const int gpus = std::max(1, find_cuda_devices().count);
    sharers = (sharers + gpus - 1) / gpus;
  }
  return on_gpu.value_or(available_memory_bytes()) / static_cast<std::uint64_t>(sharers);
}

int kv_pages(const ModelConfig& config, const JobOptions& options, std::uint64_t page_bytes,
             std::uint64_t share_bytes) {
  const int wanted_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  const auto pages_of = [](std::uint64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; };
  std::uint64_t pages;
  if (options.kv_cache_gb > 0) {
    pages = static_cast<std::uint64_t>(options.kv_cache_gb * 1e9) / page_bytes;
  } else {
    // Enough for 32 full-length sequences, in four fifths of this rank's share of what the host or its GPU has left.
    const std::uint64_t budget = share_bytes / 5 * 4;
    pages = std::min(budget / page_bytes, 32 * pages_of(static_cast<std::uint64_t>(wanted_len)));
  }
  const std::uint64_t least = options.max_model_len > 0 ? pages_of(static_cast<std::uint64_t>(wanted_len)) : 1;
  if (pages < least)
    throw Error(fmt::format("the KV cache does not fit: {} tokens need {:.2f} GB on each rank and {:.2f} GB are there; "
                            "lower --max-model-len, raise --kv-cache-gb, or use more ranks on more hosts",
                            wanted_len, static_cast<double>(least * page_bytes) / 1e9,
                            static_cast<double>(pages * page_bytes) / 1e9),
                ExitCode::does_not_fit);
  return static_cast<int>(std::min<std::uint64_t>(pages, 1u << 30));
}

/// Makes no collective call, so it may run on any thread.
LoadedModel load_model(const ModelConfig& config, const Checkpoint& checkpoint, const JobOptions& options,
                       const Rank& rank) {
  LoadedModel loaded;
  loaded.backend = make_backend(options, rank.launch);
  if (loaded.backend->free_bytes() && options.on_importance)
    throw Error("importance is measured on CPUs only; use --device cpu", ExitCode::usage);
  if (options.on_importance) {
    auto recorder = std::make_unique<ImportanceRecorder>(std::move(loaded.backend));
    loaded.recorder = recorder.get();
    loaded.backend = std::move(recorder);
  }

  const Placement& placement = loaded.placement = job_placement(options, config, rank.comm->size());
  if (options.on_importance && placement.tensor_parallel && rank.comm->size() > 1)
    throw Error("importance of a model without experts is measured on one rank", ExitCode::usage);
  refuse_what_does_not_fit(config, options, placement, rank.comm->rank(),
                           share_of_memory(*loaded.backend, rank.launch));
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const LoadOptions load{.threads = std::clamp(2 * cores / rank.launch.local_size, 1, 16),
                         .progress = rank.leads() && !options.quiet,
                         .mtp = options.mtp,
                         .device = loaded.backend.get()};
  loaded.weights = load_weights(config, checkpoint, placement, rank.comm->rank(), load);

  const HeadSlice heads = placement.tensor_parallel ? head_slice(config.num_attention_heads, config.num_key_value_heads,
                                                                 rank.comm->size(), rank.comm->rank())
                                                    : HeadSlice{};
  const int width =
      placement.tensor_parallel ? static_cast<int>(2 * heads.kv_heads.count * config.head_dim) : config.kv_width();
  const KvType kv_type = options.kv_cache_dtype.value_or(bf16(options) ? KvType::bf16 : KvType::f32);
  if (has_scales(kv_type) && !config.is_mla() && config.head_dim % kKvGroup != 0)
    throw Error(fmt::format("--kv-cache-dtype {} needs heads of a multiple of {} elements; this model's have {}",
                            name_of(kv_type), kKvGroup, config.head_dim),
                ExitCode::usage);
  const int layers = config.num_hidden_layers + (options.mtp ? 1 : 0);
  const std::uint64_t page_bytes = static_cast<std::uint64_t>(kv_row_bytes(kv_type, std::max(width, 1))) * kPageTokens *
                                   static_cast<std::uint64_t>(layers);
  const int pages = kv_pages(config, options, page_bytes, share_of_memory(*loaded.backend, rank.launch));
  loaded.cache = std::make_unique<KvCache>(*loaded.backend, layers, pages, kPageTokens, width, kv_type);
  if (const auto tokenizer = options.random_weights.empty() ? read_tokenizer(options.model) : nullptr)
    loaded.tokens = std::make_shared<grammar::TokenTable>(*tokenizer, config.vocab_size);
  return loaded;
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
                      const std::vector<WorkerReady>& ranks, int max_model_len) {
  std::uint64_t weights = 0, kv = 0;
  std::int64_t tokens = 0;
  for (const WorkerReady& r : ranks) {
    weights = std::max(weights, r.weight_bytes);
    kv = std::max(kv, r.kv_bytes);
    tokens += static_cast<std::int64_t>(r.kv_pages) * kPageTokens;
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
  if (options.rebalance_steps > 0)
    text += fmt::format("experts   moved to even out loads, looked at every {} steps\n", options.rebalance_steps);
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
  std::this_thread::sleep_for(std::chrono::milliseconds(300));  // let the others hear it
  end_now(error.exit_code);
}

/// Rank 0, beside its own worker: waits for the workers, then hands the job to `front`.
class Lead {
 public:
  Lead(Rank& rank, const JobOptions& options) : rank_(rank), options_(options) {}

  int serve(const std::function<int(Engine&)>& front) {
    ControlServer& server = *rank_.server;
    server.wait_for_all();
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
    c.page_tokens = kPageTokens;
    for (const WorkerReady& r : ready) c.kv_pages.push_back(r.kv_pages);
    const int largest = *(c.tensor_parallel ? std::min_element(c.kv_pages.begin(), c.kv_pages.end())
                                            : std::max_element(c.kv_pages.begin(), c.kv_pages.end()));
    const int allowed = options_.max_model_len > 0 ? options_.max_model_len : config.max_position_embeddings;
    c.max_model_len = engine.max_model_len =
        static_cast<int>(std::min<std::int64_t>(allowed, static_cast<std::int64_t>(largest) * kPageTokens));
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
    engine.summary = summarize(config, options_, *rank_.comm, ready, engine.max_model_len);

    Coordinator coordinator(server, c);
    engine.coordinator = &coordinator;
    const int code = front(engine);
    coordinator.stop();
    server.close();
    return code;
  }

 private:
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
void report_failure(Rank& rank, const std::function<void()>& part) {
  const auto report = [&](const Error& error) { rank.client->send(frame(Message::failed, encode(error))); };
  try {
    part();
  } catch (const Error& error) {
    report(error);
  } catch (const std::exception& error) {
    report(Error(fmt::format("rank {} on {}: {}", rank.comm->rank(), host_name(), error.what())));
  }
}

/// Loads beside the control plane, so that this rank hears at once when another one fails; then works step by step.
void work(const JobOptions& options, Rank& rank) {
  ControlClient& client = *rank.client;
  ModelConfig config;
  auto loading = std::async(std::launch::async, [&] {
    LoadedModel loaded;
    report_failure(rank, [&] {
      config = job_model_config(options);
      loaded = load_model(config, job_checkpoint(options), options, rank);
      client.send(
          frame(Message::ready, encode(WorkerReady{loaded.weights.bytes, loaded.cache->bytes(), loaded.cache->pages(),
                                                   loaded.backend->description(), host_name()})));
    });
    return loaded;
  });

  LoadedModel loaded;
  std::unique_ptr<Model> model;
  std::unique_ptr<Worker> worker;
  while (auto received = client.receive()) {
    if (received->type == static_cast<std::uint16_t>(Message::failed)) {
      if (!rank.leads()) end_now(decode_failure(received->payload).exit_code);
      continue;  // rank 0 is telling the others, and ends last
    }
    report_failure(rank, [&] {
      if (!worker) {  // the first step reaches all ranks together: the time for collective set-up
        loaded = loading.get();
        model =
            std::make_unique<Model>(config, std::move(loaded.weights), loaded.placement, *loaded.backend, *rank.comm,
                                    *loaded.cache, bf16(options), answers_of(options, loaded.placement));
        const bool outputs = rank.leads() || !loaded.placement.tensor_parallel;
        worker = std::make_unique<Worker>(*model, *loaded.cache, kMaxLogitRows, outputs, loaded.tokens);
      }
      client.send(frame(Message::result, encode(worker->run(decode_step_plan(received->payload)))));
    });
  }
  if (options.on_importance && model)
    options.on_importance(loaded.recorder->collect(config, model->weights(), loaded.placement, *rank.comm));
}

int run_ranks(int* argc, char*** argv, const JobOptions& options, const std::function<int(Engine&)>& front) {
  if (options.device != "auto" && options.device != "cpu" && options.device != "cuda")
    throw Error("--device " + options.device + ": there are auto, cpu and cuda", ExitCode::usage);
  Rank rank = join_job(argc, argv, options);
  rank.client->on_lost([me = rank.comm->rank()](int, const std::string& why) {
    if (me != 0) std::fprintf(stderr, "shoal: rank %d: lost rank 0 (%s); ending\n", me, why.c_str());
    end_now(ExitCode::failure);
  });
  if (!rank.leads()) {
    work(options, rank);
    return 0;
  }

  rank.server->on_lost([&rank](int, const std::string& why) {
    std::thread([&rank, why] { end_job(rank, Error(why + "; ending the job")); }).detach();
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
  work(options, rank);
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
  const bool gpu = options.device != "cpu" && find_cuda_devices().count > 0;
  if (options.max_batched_tokens == 0) options.max_batched_tokens = default_step_tokens(gpu);
  if (options.max_prefill_tokens == 0) options.max_prefill_tokens = gpu ? 512 : 256;
}
}  // namespace

int run_job(int* argc, char*** argv, const JobOptions& asked, const std::function<int(Engine&)>& front) {
  try {
    JobOptions options = asked;
    read_plan(options);
    choose_step(options);
    return run_ranks(argc, argv, options, front);
  } catch (const Error& error) {
    std::fprintf(stderr, "shoal: %s\n", error.what());
    return static_cast<int>(error.exit_code);
  }
}

}  // namespace shoal
