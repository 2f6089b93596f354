#include "runtime/planned_job.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "planner/expert_slices.h"
#include "planner/plan.h"
#include "runtime/expert_moves.h"
#include "runtime/gguf.h"
#include "runtime/model_source.h"

namespace shoal {
namespace {

Precision precision_of(const JobOptions& options, const ModelConfig& config) {
  return options.random_weights.empty() ? stored_precision(options.model, config)
                                        : Precision::from_name(options.random_weights);
}

}  // namespace

Placement job_placement(const JobOptions& options, const ModelConfig& config, int ranks) {
  Placement placement = place_evenly(config, ranks);
  if (!options.planned) return placement;
  const Plan& plan = *options.planned;
  const auto refuse = [&](const std::string& why) {
    throw Error(fmt::format("{}: {}", options.plan.string(), why), ExitCode::usage);
  };
  if (plan.num_hidden_layers != config.num_hidden_layers || plan.n_routed_experts != config.n_routed_experts)
    refuse(fmt::format("is for {} ({} layers, {} experts), and {} has {} layers and {} experts", plan.model,
                       plan.num_hidden_layers, plan.n_routed_experts, options.model.string(), config.num_hidden_layers,
                       config.n_routed_experts));
  if (plan.layout.ranks != ranks) refuse(fmt::format("is for {} ranks, and this job has {}", plan.layout.ranks, ranks));
  if (!plan.served())
    refuse(
        fmt::format("cuts the dense parts over {} ranks; this model's are served over {}: plan it without "
                    "--tensor-parallel",
                    plan.layout.tensor_parallel, served_tensor_parallel(config.n_routed_experts, ranks)));
  if (plan.layout.sliced_experts) {
    if (const std::string why = why_not_sliced(config, precision_of(options, config), ranks); !why.empty())
      refuse("slices experts: " + why);
    if (options.rebalance_steps > 0)
      refuse("slices experts, which then have no place to move to: no --rebalance-steps");
    return place_slices(config, ranks);
  }
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto& experts =
        config.n_routed_experts > 0 ? plan.experts[static_cast<std::size_t>(layer)] : LayerPlacement{};
    auto& placed = placement.experts[static_cast<std::size_t>(layer)];
    if (experts.size() != placed.size())
      refuse(fmt::format("has {} experts in layer {}, and the model {}", experts.size(), layer, placed.size()));
    placed = experts;
  }
  return placement;
}

bool moves_experts(const JobOptions& options, const Placement& placement) {
  return options.rebalance_steps > 0 && placement.ranks > 1 && !placement.tensor_parallel;
}

Answers answers_of(const JobOptions& options, const Placement& placement) {
  return placement.has_replicas() || moves_experts(options, placement) ? Answers::by_expert : Answers::summed;
}

void read_plan(JobOptions& options) {
  if (options.plan.empty()) return;
  options.planned = std::make_shared<const Plan>(
      Plan::from_json(read_json_file(options.plan, std::uint64_t{256} << 20), options.plan.string()));
  const Plan& plan = *options.planned;
  options.max_model_len = plan.workload.context;
  options.max_batched_tokens = plan.workload.max_batched_tokens;
  // Plans tell 16 bits from 32; FP8 computes the rest in 16.
  if (!(plan.workload.bf16_rows && options.compute == Compute::fp8))
    options.compute = plan.workload.bf16_rows ? Compute::bf16 : Compute::f32;
  options.kv_cache_dtype = plan.workload.kv;
  if (options.mtp && !plan.workload.mtp)
    throw Error("--speculative mtp: the plan was made without it, and has no room for its weights", ExitCode::usage);
  options.mtp = plan.workload.mtp;
  double kv = 0;
  for (const RankMemory& m : plan.memory) kv = std::max(kv, m.kv);
  options.kv_cache_gb = (kv * (1 + 1e-9) + 1) / 1e9;  // whole pages: rounding must not cost one
}

namespace {

/// What a rank is about to hold, and what else would do.
class StartCheck {
 public:
  StartCheck(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
             int ranks_per_host, Device::Kind device)
      : config_(config),
        options_(options),
        placement_(placement),
        rank_(rank),
        ranks_per_host_(ranks_per_host),
        device_(device),
        precision_(precision_of(options, config)),
        weights_(config, precision_, device, options.mtp) {
    workload_.context = std::max(1, options.max_model_len);
    workload_.concurrency = placement.tensor_parallel ? 1 : placement.ranks;
    workload_.kv = options.kv_type();
    workload_.bf16_rows = options.computes_in_16_bits();
    workload_.max_batched_tokens = options.max_batched_tokens;
    workload_.mtp = options.mtp;
  }

  RankMemory memory() const { return memory(weights_, workload_, placement_, rank_); }

  /// Options of serve, and other files, any one of which makes it fit into `share` bytes a rank.
  std::vector<std::string> changes(double share) const {
    std::vector<std::string> found;
    const auto fits = [&](const Workload& workload) {
      return memory(weights_, workload, placement_, rank_).total() <= share;
    };
    const bool sliced = placement_.sliced_experts;
    const int most_ranks = sliced ? most_slices(config_, precision_) : 4096;
    for (int ranks = placement_.ranks + 1; ranks <= most_ranks; ranks += std::max(1, ranks / 16)) {
      Workload workload = workload_;
      if (!placement_.tensor_parallel) workload.concurrency = ranks;
      const Placement more = sliced ? place_slices(config_, ranks) : place_evenly(config_, ranks);
      if (memory(weights_, workload, more, 0).total() > share) continue;
      found.push_back(fmt::format("{}{} ranks with as much memory each (mpirun --hostfile)",
                                  options_.planned ? "a plan for " : "", ranks));
      break;
    }
    if (options_.kv_cache_gb <= 0) {
      for (const KvType type : {KvType::bf16, KvType::int8}) {
        Workload workload = workload_;
        workload.kv = type;
        if (!fits(workload)) continue;
        found.push_back(fmt::format("--kv-cache-dtype {}", name_of(type)));
        break;
      }
      for (Workload workload = workload_; workload.context > 256;) {
        workload.context /= 2;
        if (!fits(workload)) continue;
        found.push_back(fmt::format("--max-model-len {}", workload.context));
        break;
      }
    } else if (memory().total() - options_.kv_cache_gb * 1e9 < share) {
      if (options_.planned) {
        found.push_back("a plan with a shorter --context or less --concurrency");
      } else {
        found.push_back(fmt::format("--kv-cache-gb {:.3f}", (share - memory().total()) / 1e9 + options_.kv_cache_gb));
        found.push_back("no --kv-cache-gb, and the cache takes what is free");
      }
    }
    if (options_.mtp) {
      const HeldWeights trunk(config_, precision_, device_);
      Workload workload = workload_;
      workload.mtp = false;
      if (memory(trunk, workload, placement_, rank_).total() <= share)
        found.push_back(options_.planned ? "a plan without --speculative mtp" : "--speculative none");
    }
    add_smaller_weights(share, found);
    if (!options_.random_weights.empty()) found.push_back("fewer --layers");
    return found;
  }

 private:
  /// The least coarse weights that fit; with a shorter context too, where nothing else was found.
  void add_smaller_weights(double share, std::vector<std::string>& found) const {
    const bool made_up = !options_.random_weights.empty(), from_gguf = !made_up && is_gguf(options_.model);
    const double now = static_cast<double>(checkpoint_bytes(config_, precision_));
    for (const bool shorter : {false, true}) {
      if (shorter && (!found.empty() || options_.kv_cache_gb > 0 || workload_.context <= 4096)) return;
      for (const char* name : {"FP8", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_M", "Q2_K"}) {
        const Precision precision = Precision::from_name(name);
        if (from_gguf && precision.name() == "fp8") continue;  // which is made of a folder
        if (static_cast<double>(checkpoint_bytes(config_, precision)) >= now) continue;
        const HeldWeights smaller(config_, precision, device_, options_.mtp);
        Workload workload = workload_;
        if (shorter) workload.context = 4096;
        if (memory(smaller, workload, placement_, rank_).total() > share) continue;
        found.push_back((made_up ? fmt::format("--precision {}", name)
                                 : fmt::format("a smaller checkpoint ('shoal quantize --type {}')", name)) +
                        (shorter ? " with --max-model-len 4096" : ""));
        break;
      }
    }
  }

  RankMemory memory(const HeldWeights& weights, const Workload& workload, const Placement& placement, int rank) const {
    const Layout layout{placement.ranks, placement.tensor_parallel ? placement.ranks : 1,
                        placement.has_replicas() || options_.rebalance_steps > 0, placement.sliced_experts};
    const bool even = placement.ranks % ranks_per_host_ == 0;
    Cluster cluster;
    cluster.groups.push_back({.nodes = even ? placement.ranks / ranks_per_host_ : 1,
                              .ranks_per_node = even ? ranks_per_host_ : placement.ranks,
                              .device = {.kind = device_}});
    std::vector<int> held;
    for (int layer = 0; layer < weights.layers(); ++layer)
      held.push_back(static_cast<int>(placement.experts_on(layer, rank).size()));
    RankMemory m = rank_memory(config_, weights, workload, layout, cluster, rank, held);
    if (options_.kv_cache_gb > 0) m.kv = options_.kv_cache_gb * 1e9;
    if (options_.rebalance_steps > 0) {
      double expert = 0;
      for (int layer = 0; layer < weights.layers(); ++layer) expert = std::max(expert, weights.expert_bytes(layer));
      m.exchange += kExpertsOnTheWay * expert;
    }
    return m;
  }

  const ModelConfig& config_;
  const JobOptions& options_;
  const Placement& placement_;
  const int rank_, ranks_per_host_;
  const Device::Kind device_;
  const Precision precision_;
  const HeldWeights weights_;
  Workload workload_;
};

}  // namespace

RankMemory start_memory(const ModelConfig& config, const JobOptions& options, const Placement& placement, int rank,
                        int ranks_per_host, Device::Kind device, std::uint64_t share_bytes) {
  const StartCheck check(config, options, placement, rank, ranks_per_host, device);
  const RankMemory m = check.memory();
  const auto share = static_cast<double>(share_bytes);
  if (m.total() <= share) return m;
  std::string message = fmt::format(
      "rank {} would hold {} = weights {} + KV cache {} ({}) + activations {} + exchange {} + program {}, and its "
      "share of this {}'s free memory is {}",
      rank, human_bytes(m.total()), human_bytes(m.weights), human_bytes(m.kv),
      options.kv_cache_gb > 0 ? "as asked" : "of one sequence", human_bytes(m.activations), human_bytes(m.exchange),
      human_bytes(m.reserve), device == Device::Kind::gpu ? "GPU" : "host", human_bytes(share));
  const auto changes = check.changes(share);
  if (!changes.empty())
    message += fmt::format(". Any one of these would make it fit:\n  {}", fmt::join(changes, "\n  "));
  throw Error(message, ExitCode::does_not_fit);
}

}  // namespace shoal
