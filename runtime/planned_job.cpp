#include "runtime/planned_job.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "planner/plan.h"

namespace shoal {
namespace {

Plan read_plan(const JobOptions& options) {
  return Plan::from_json(read_json_file(options.plan, std::uint64_t{256} << 20), options.plan.string());
}

}  // namespace

Placement job_placement(const JobOptions& options, const ModelConfig& config, int ranks) {
  Placement placement = place_evenly(config, ranks);
  if (options.plan.empty()) return placement;
  const Plan plan = read_plan(options);
  const auto refuse = [&](const std::string& why) {
    throw Error(fmt::format("{}: {}", options.plan.string(), why), ExitCode::usage);
  };
  if (plan.num_hidden_layers != config.num_hidden_layers || plan.n_routed_experts != config.n_routed_experts)
    refuse(fmt::format("is for {} ({} layers, {} experts), and {} has {} layers and {} experts", plan.model,
                       plan.num_hidden_layers, plan.n_routed_experts, options.model.string(), config.num_hidden_layers,
                       config.n_routed_experts));
  if (plan.layout.ranks != ranks) refuse(fmt::format("is for {} ranks, and this job has {}", plan.layout.ranks, ranks));
  const int tensor_parallel = placement.tensor_parallel ? ranks : 1;
  if (plan.layout.tensor_parallel != tensor_parallel)
    refuse(fmt::format("cuts the dense parts over {} ranks; this model's are served over {}",
                       plan.layout.tensor_parallel, tensor_parallel));
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto& experts =
        config.n_routed_experts > 0 ? plan.experts[static_cast<std::size_t>(layer)] : LayerPlacement{};
    auto& rank_of = placement.rank_of_expert[static_cast<std::size_t>(layer)];
    if (experts.size() != rank_of.size())
      refuse(fmt::format("has {} experts in layer {}, and the model {}", experts.size(), layer, rank_of.size()));
    for (std::size_t e = 0; e < experts.size(); ++e) {
      if (experts[e].size() > 1)
        refuse(
            fmt::format("has {} replicas of expert {} of layer {}, which serve cannot do yet; plan without "
                        "--redundant-experts",
                        experts[e].size(), e, layer));
      rank_of[e] = experts[e][0].rank;
    }
  }
  return placement;
}

void apply_plan(JobOptions& options) {
  if (options.plan.empty()) return;
  const Plan plan = read_plan(options);
  options.max_model_len = plan.workload.context;
  options.max_batched_tokens = plan.workload.max_batched_tokens;
  if (plan.workload.kv != KvType::f32 && plan.workload.kv != KvType::bf16)
    throw Error(fmt::format("{}: workload.kv_type is {}; serve has f32 and bf16", options.plan.string(),
                            name_of(plan.workload.kv)),
                ExitCode::usage);
  options.compute = plan.workload.kv == KvType::f32 ? Compute::f32 : Compute::bf16;
  double kv = 0;
  for (const RankMemory& m : plan.memory) kv = std::max(kv, m.kv);
  options.kv_cache_gb = (kv * (1 + 1e-9) + 1) / 1e9;  // whole pages: rounding must not cost one
}

void refuse_what_does_not_fit(const ModelConfig& config, const JobOptions& options, const Placement& placement,
                              int rank, std::uint64_t share_bytes) {
  Workload one;
  one.context = std::max(1, options.max_model_len);
  one.concurrency = placement.tensor_parallel ? 1 : placement.ranks;
  one.kv = options.compute == Compute::f32 ? KvType::f32 : KvType::bf16;
  one.max_batched_tokens = options.max_batched_tokens;
  const Layout layout{placement.ranks, placement.tensor_parallel ? placement.ranks : 1};
  Cluster hosts;
  hosts.groups.push_back({.nodes = 1, .ranks_per_node = placement.ranks, .device = {.kind = Device::Kind::cpu}});
  const Precision precision =
      options.random_weights.empty() ? Precision::of_config(config) : Precision::from_name(options.random_weights);
  const HeldWeights weights(config, precision, Device::Kind::cpu);
  std::vector<int> held;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer)
    held.push_back(static_cast<int>(placement.experts_on(layer, rank).size()));
  const RankMemory m = rank_memory(config, weights, one, layout, hosts, rank, held);
  if (m.total() <= static_cast<double>(share_bytes)) return;
  std::string message = fmt::format(
      "rank {} would hold {} = weights {} + KV cache of one sequence {} + activations {} + exchange {} + program {}, "
      "and its "
      "share of this host's free memory is {}; use more hosts (mpirun --hostfile)",
      rank, human_bytes(m.total()), human_bytes(m.weights), human_bytes(m.kv), human_bytes(m.activations),
      human_bytes(m.exchange), human_bytes(m.reserve), human_bytes(share_bytes));
  if (m.kv > m.total() / 20) message += ", a shorter --max-model-len";
  if (one.kv == KvType::f32) message += ", --compute bf16";
  if (!options.random_weights.empty()) message += ", fewer --layers";
  message += ", or a checkpoint in fewer bits ('shoal plan' says what fits)";
  throw Error(message, ExitCode::does_not_fit);
}

}  // namespace shoal
