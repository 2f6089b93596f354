#include "runtime/rank_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include "base/units.h"
#include "kernels/cuda/cuda_backend.h"
#include "planner/memory.h"
#include "runtime/host.h"
#include "runtime/importance_recorder.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"

namespace shoal {
namespace {

/// What computes on this rank: a GPU where there is one, unless the CPU is asked for.
std::unique_ptr<Backend> make_backend(const JobOptions& options, const LaunchEnvironment& launch) {
  if (computes_on_gpu(options)) return make_cuda_backend({gpu_of(launch), options.compute});
  if (options.device == "cuda")
    throw Error(fmt::format("--device cuda: {}; check nvidia-smi on {}, or use --device cpu",
                            find_cuda_devices().reason, host_name()));
  CpuOptions cpu{.threads = options.threads, .pin = options.pin, .compute = options.compute, .isa = options.isa};
  cpu.local_rank = launch.local_rank;
  cpu.local_ranks = launch.local_size;
  return make_cpu_backend(cpu);
}

/// Bytes of its device's memory that this rank may take: of its GPU's, or of the host's, shared with the other ranks
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

/// Pages of KV cache where `left_bytes` are left to it.
int kv_pages(const ModelConfig& config, const JobOptions& options, std::uint64_t page_bytes, std::uint64_t left_bytes) {
  const int wanted_len = options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
  const auto pages_of = [](std::uint64_t tokens) { return (tokens + kv_page_tokens - 1) / kv_page_tokens; };
  const std::uint64_t of_sequence = pages_of(static_cast<std::uint64_t>(wanted_len));
  const std::uint64_t least = options.max_model_len > 0 ? of_sequence : 1;
  std::uint64_t pages;
  if (options.kv_cache_gb > 0) {
    pages = static_cast<std::uint64_t>(options.kv_cache_gb * 1e9) / page_bytes;
  } else {
    // Enough for 32 full-length sequences, in four fifths of what is left; in all of it where a single one needs that.
    const std::uint64_t room = left_bytes / page_bytes;
    pages = std::min(std::max(room / 5 * 4, std::min(least, room)), 32 * of_sequence);
  }
  if (pages < least)
    throw Error(fmt::format("the KV cache does not fit: {} tokens need {} on each rank and {} are there; lower "
                            "--max-model-len, raise --kv-cache-gb, or use more ranks on more hosts",
                            options.max_model_len > 0 ? wanted_len : kv_page_tokens, human_bytes(least * page_bytes),
                            human_bytes(pages * page_bytes)),
                ExitCode::does_not_fit);
  return static_cast<int>(std::min<std::uint64_t>(pages, 1u << 30));
}

}  // namespace

bool computes_on_gpu(const JobOptions& options) { return options.device != "cpu" && find_cuda_devices().count > 0; }

int gpu_of(const LaunchEnvironment& launch) { return launch.local_rank % std::max(1, find_cuda_devices().count); }

RankDevice open_device(const JobOptions& options, const LaunchEnvironment& launch) {
  RankDevice device;
  device.backend = make_backend(options, launch);
  device.share_bytes = share_of_memory(*device.backend, launch);
  return device;
}

namespace {

/// The KV cache of a rank: of its own heads under tensor parallelism.
struct CacheShape {
  int layers = 0, width = 0;  // width: elements of a row
  KvType type{};
  int pages = 0;

  std::uint64_t page_bytes() const {
    return static_cast<std::uint64_t>(kv_row_bytes(type, std::max(width, 1))) * kv_page_tokens *
           static_cast<std::uint64_t>(layers);
  }
  std::unique_ptr<KvCache> make(Backend& backend) const {
    return std::make_unique<KvCache>(backend, layers, pages, kv_page_tokens, width, type);
  }
};

/// What fits beside the weights of `rank` in its share of memory. Error (does not fit) where nothing does.
CacheShape cache_shape(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                       int ranks_per_host, std::uint64_t share_bytes) {
  CacheShape cache;
  cache.layers = config.num_hidden_layers + (options.mtp ? 1 : 0);
  cache.type = options.kv_type();
  cache.width = config.kv_width();
  if (placement.tensor_parallel) {
    const HeadSlice heads = head_slice(config.num_attention_heads, config.num_key_value_heads, placement.ranks, rank);
    cache.width = static_cast<int>(2 * heads.kv_heads.count * config.head_dim);
  }
  const Device::Kind device = computes_on_gpu(options) ? Device::Kind::gpu : Device::Kind::cpu;
  const RankMemory planned = start_memory(config, options, placement, rank, ranks_per_host, device, share_bytes);
  // Reckoned, not looked up when the weights are there: what is free then depends on how far the host's other ranks
  // are, and the cache, which is only mapped, takes its memory as sequences come, hours later.
  const auto taken =
      static_cast<std::uint64_t>(planned.weights + planned.activations + planned.exchange + planned.reserve);
  cache.pages = kv_pages(config, options, cache.page_bytes(), share_bytes - std::min(taken, share_bytes));
  return cache;
}

/// The same where ranks were lost: a KV cache of a size that was asked for becomes smaller where that does not fit.
CacheShape cache_left(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                      int ranks_per_host, std::uint64_t share_bytes) {
  try {
    return cache_shape(config, options, placement, rank, ranks_per_host, share_bytes);
  } catch (const Error& error) {
    if (error.exit_code != ExitCode::does_not_fit || options.kv_cache_gb <= 0) throw;
  }
  JobOptions any_size = options;
  any_size.kv_cache_gb = 0;
  return cache_shape(config, any_size, placement, rank, ranks_per_host, share_bytes);
}

LoadOptions load_options(const JobOptions& options, const LaunchEnvironment& launch, int rank, Backend& backend) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return {.threads = std::clamp(2 * cores / launch.local_size, 1, 16),
          .progress = rank == 0 && !options.quiet,
          .mtp = options.mtp,
          .device = &backend};
}

}  // namespace

RankModel load_rank_model(const ModelConfig& config, const Checkpoint& checkpoint, const JobOptions& options,
                          const LaunchEnvironment& launch, int rank, const Placement& placement, RankDevice device) {
  RankModel loaded{.rank = rank, .placement = placement, .backend = std::move(device.backend)};
  if (computes_on_gpu(options) && options.on_importance)
    throw Error("importance is measured on CPUs only; use --device cpu", ExitCode::usage);
  if (options.on_importance) {
    auto recorder = std::make_unique<ImportanceRecorder>(std::move(loaded.backend));
    loaded.recorder = recorder.get();
    loaded.backend = std::move(recorder);
  }
  if (options.on_importance && placement.tensor_parallel && placement.ranks > 1)
    throw Error("importance of a model without experts is measured on one rank", ExitCode::usage);
  if (has_scales(options.kv_type()) && !config.is_mla() && config.head_dim % kKvGroup != 0)
    throw Error(fmt::format("--kv-cache-dtype {} needs heads of a multiple of {} elements; this model's have {}",
                            name_of(options.kv_type()), kKvGroup, config.head_dim),
                ExitCode::usage);
  // Before the weights, which may take long to read.
  if (const auto tokenizer = options.random_weights.empty() ? read_tokenizer(options.model) : nullptr) {
    check_ids(*tokenizer, config.vocab_size, options.model);
    loaded.tokens = std::make_shared<grammar::TokenTable>(*tokenizer, config.vocab_size);
  }
  const CacheShape cache = cache_shape(config, options, placement, rank, launch.local_size, device.share_bytes);
  loaded.weights =
      load_weights(config, checkpoint, placement, rank, load_options(options, launch, rank, *loaded.backend));
  loaded.cache = cache.make(*loaded.backend);
  return loaded;
}

bool outlives_one(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                  std::uint64_t share_bytes) {
  std::vector<int> left;
  const int lost = rank == placement.ranks - 1 ? rank - 1 : placement.ranks - 1;
  for (int r = 0; r < placement.ranks; ++r)
    if (r != lost) left.push_back(r);
  const auto number = static_cast<int>(std::ranges::find(left, rank) - left.begin());
  try {
    static_cast<void>(cache_left(config, options, place_among(config, placement, left), number, 1, share_bytes));
  } catch (const Error&) {
    return false;
  }
  return true;
}

bool regroup_rank_model(RankModel& loaded, const ModelConfig& config, const Checkpoint& checkpoint,
                        const JobOptions& options, const LaunchEnvironment& launch, int rank, int ranks_per_host,
                        const Placement& placement, std::uint64_t share_bytes) {
  const CacheShape cache = cache_left(config, options, placement, rank, ranks_per_host, share_bytes);
  const Placement& before = loaded.placement;  // one rank alone slices nothing
  const bool sliced = before.tensor_parallel || before.sliced_experts;
  const bool keeps_cache = !before.tensor_parallel && cache.pages >= loaded.cache->pages();
  if (!keeps_cache) loaded.cache.reset();  // before more is read
  const LoadOptions load = load_options(options, launch, rank, *loaded.backend);
  if (sliced) {
    loaded.weights = {};
    loaded.weights = load_weights(config, checkpoint, placement, rank, load);
  } else {
    reload_experts(loaded.weights, loaded.rank, config, checkpoint, placement, rank, load);
  }
  if (!keeps_cache) loaded.cache = cache.make(*loaded.backend);
  loaded.rank = rank;
  loaded.placement = placement;
  return keeps_cache;
}

}  // namespace shoal
