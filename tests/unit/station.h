#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "collectives/communicator.h"
#include "runtime/worker.h"

namespace shoal::test {

struct StationOptions {
  Compute compute = Compute::f32;
  bool mtp = false;
  std::optional<KvType> kv_type;  // not set: as `compute`
  int pages = 256;
  std::function<std::unique_ptr<Backend>(Compute)> make_backend;  // not set: the CPU's
  std::optional<Placement> placement;                             // not set: even
  Answers answers = Answers::summed;
};

/// One rank's worker with all it stands on, for a model on disk.
struct Station {
  static constexpr int kPageTokens = 16;

  ModelConfig config;
  Placement placement;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Model> model;
  std::unique_ptr<Worker> worker;

  Station(const std::filesystem::path& dir, Communicator& comm, const StationOptions& options = {})
      : config(ModelConfig::from_file(dir)), placement(options.placement.value_or(place_evenly(config, comm.size()))) {
    backend = options.make_backend ? options.make_backend(options.compute)
                                   : make_cpu_backend({.threads = 1, .compute = options.compute});
    const bool tp = placement.tensor_parallel;
    const HeadSlice heads =
        tp ? head_slice(config.num_attention_heads, config.num_key_value_heads, comm.size(), comm.rank()) : HeadSlice{};
    const int width = tp ? static_cast<int>(2 * heads.kv_heads.count * config.head_dim) : config.kv_width();
    const bool bf16 = options.compute != Compute::f32;  // as jobs have it
    cache = std::make_unique<KvCache>(*backend, config.num_hidden_layers + (options.mtp ? 1 : 0), options.pages,
                                      kPageTokens, width, options.kv_type.value_or(bf16 ? KvType::bf16 : KvType::f32));
    model = std::make_unique<Model>(config,
                                    load_weights(config, Checkpoint::open(dir), placement, comm.rank(),
                                                 {.mtp = options.mtp, .device = backend.get()}),
                                    placement, *backend, comm, *cache, bf16, options.answers);
    worker = std::make_unique<Worker>(*model, *backend, *cache, 7, comm.rank() == 0 || !tp, nullptr);
  }
};

/// Tokens of a step, all of one sequence.
inline TokenBatch tokens_of(int count, int rank, int step, std::span<const std::int32_t> pages) {
  TokenBatch batch;
  for (int t = 0; t < count; ++t) {
    batch.ids.push_back((7 * t + 31 * rank + step) % 250);
    batch.positions.push_back(t);
    batch.slots.push_back(t);
    batch.queries.push_back({pages.data(), t + 1});
  }
  return batch;
}

}  // namespace shoal::test
