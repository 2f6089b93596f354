#include "planner/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "planner/expert_slices.h"

namespace shoal {
namespace {

constexpr int longest_search_nodes = 4096;

void refuse(bool wrong, const std::string& message) {
  if (wrong) throw Error(message, ExitCode::usage);
}

}  // namespace

void check(const PlanRequest& r) {
  const int ranks = r.cluster.ranks();
  refuse(r.workload.context < 1, fmt::format("--context is {}, and must be at least 1", r.workload.context));
  refuse(r.workload.context > r.config.max_position_embeddings,
         fmt::format("--context is {}, and the model's max_position_embeddings {}", r.workload.context,
                     r.config.max_position_embeddings));
  refuse(r.workload.concurrency < 1,
         fmt::format("--concurrency is {}, and must be at least 1", r.workload.concurrency));
  refuse(r.prompt < 0 || r.prompt > r.workload.context,
         fmt::format("--prompt is {}, and must lie within the context of {}", r.prompt, r.workload.context));
  refuse(r.workload.mtp && r.config.num_nextn_predict_layers < 1,
         "--speculative mtp needs a model with an MTP layer (num_nextn_predict_layers), and this one has none");
  refuse(r.redundant_experts < 0,
         fmt::format("--redundant-experts is {}, and must not be negative", r.redundant_experts));
  const std::int64_t most = std::int64_t{r.config.n_routed_experts} * (ranks - 1);  // every expert on every rank
  refuse(r.redundant_experts > most,
         fmt::format("--redundant-experts is {}, and {} ranks have room for {} replicas beyond the first of {} experts",
                     r.redundant_experts, ranks, most, r.config.n_routed_experts));
  refuse(r.tensor_parallel < 0 || (r.tensor_parallel > 0 && ranks % r.tensor_parallel != 0),
         fmt::format("--tensor-parallel is {}, which does not divide the {} ranks", r.tensor_parallel, ranks));
  refuse(r.slice_experts && r.redundant_experts > 0,
         "--slice-experts puts a slice of every expert on every rank, which leaves nothing to replicate: leave out "
         "--redundant-experts");
  refuse(r.slice_experts && r.cluster.groups.size() > 1, "--slice-experts cuts equal slices, for equal nodes");
  const std::string no_slices = r.slice_experts ? why_not_sliced(r.config, r.precision, ranks) : "";
  refuse(!no_slices.empty(), "--slice-experts: " + no_slices);
  for (const auto& layer : r.loads)
    refuse(static_cast<int>(layer.size()) != r.config.n_routed_experts,
           fmt::format("the loads of a layer are {} numbers, and the model has {} experts", layer.size(),
                       r.config.n_routed_experts));
  const auto moe_layers = [&] {
    int n = 0;
    for (int i = 0; i < r.config.num_hidden_layers; ++i) n += r.config.is_moe_layer(i);
    return n;
  };
  refuse(!r.loads.empty() && static_cast<int>(r.loads.size()) != moe_layers(),
         fmt::format("there are loads of {} layers, and the model has {} with experts", r.loads.size(), moe_layers()));
}

namespace {

bool makes_sense(const PlanRequest& r) {
  try {
    check(r);
  } catch (const Error&) {
    return false;
  }
  return true;
}

/// Whether a rank's share is within its device's memory, and within its companion's.
bool holds(const Device& device, const RankMemory& m, double dense) {
  if (!device.companion) return m.total() <= device.memory_bytes;
  return m.total() - dense - m.kv <= device.memory_bytes && m.companion <= device.companion->memory_bytes;
}

/// Expert slots of each rank in one layer: equal ranks get equal numbers; unequal ones as many as their memory has room
/// for, in proportion to their bandwidth as far as that goes.
ExpertRanks expert_ranks(const PlanRequest& r, const HeldWeights& weights, const Layout& layout) {
  const int experts = r.config.n_routed_experts, wanted = experts + r.redundant_experts;
  ExpertRanks ranks = ExpertRanks::equal(layout.ranks, 1, experts, r.redundant_experts);
  for (int i = 0; i < layout.ranks; ++i) ranks.node[static_cast<std::size_t>(i)] = r.cluster.node_of(i);
  if (r.cluster.groups.size() == 1) return ranks;

  double expert_bytes = 0, all_speed = 0;
  for (int layer = 0; layer < r.config.num_hidden_layers; ++layer) expert_bytes += weights.expert_bytes(layer);
  for (int i = 0; i < layout.ranks; ++i) {
    ranks.speed[static_cast<std::size_t>(i)] = r.cluster.device_of(i).memory_bytes_per_s / 1e12;
    all_speed += ranks.speed[static_cast<std::size_t>(i)];
  }
  std::vector<int> room;
  for (int i = 0; i < layout.ranks; ++i) {
    const double fixed = rank_memory(r.config, weights, r.workload, layout, r.cluster, i, {}).total();
    const double left = r.cluster.device_of(i).memory_bytes - fixed;
    room.push_back(expert_bytes > 0 ? static_cast<int>(std::clamp(left / expert_bytes, 0.0, 1.0 * experts)) : experts);
    const double share = wanted * ranks.speed[static_cast<std::size_t>(i)] / all_speed;
    ranks.slots[static_cast<std::size_t>(i)] = std::min(room.back(), static_cast<int>(std::ceil(share)));
  }
  int missing = wanted - std::accumulate(ranks.slots.begin(), ranks.slots.end(), 0);
  for (bool given = true; missing > 0 && given;) {
    given = false;
    for (std::size_t i = 0; i < room.size() && missing > 0; ++i)
      if (ranks.slots[i] < room[i]) ++ranks.slots[i], --missing, given = true;
  }
  // Where it does not fit, the plan still says by how much.
  for (std::size_t i = 0; missing > 0; i = (i + 1) % room.size()) ++ranks.slots[i], --missing;
  return ranks;
}

/// Replicas of a layer on a rank, for all layers with experts. Those of an MTP layer are spread evenly.
std::vector<int> held_counts(const ModelConfig& config, const HeldWeights& weights, int slots, int ranks) {
  std::vector<int> counts;
  for (int layer = 0; layer < weights.layers(); ++layer)
    counts.push_back(!config.is_moe_layer(layer)        ? 0
                     : layer < config.num_hidden_layers ? slots
                     : slots == config.n_routed_experts ? slots  // slices of all, or one rank
                                                        : (config.n_routed_experts + ranks - 1) / ranks);
  return counts;
}

struct Chosen {
  Layout layout;
  ExpertRanks ranks;
  std::vector<RankMemory> memory;
  bool fits = false;
};
Chosen choose_layout(const PlanRequest& r, const HeldWeights& weights) {
  const int ranks = r.cluster.ranks(), experts = r.config.n_routed_experts;
  const int tp = r.tensor_parallel > 0 ? r.tensor_parallel : served_tensor_parallel(experts, ranks);
  Chosen chosen;
  chosen.layout = {ranks, tp, r.redundant_experts > 0, r.slice_experts};
  if (experts > 0) chosen.ranks = expert_ranks(r, weights, chosen.layout);
  if (r.slice_experts) chosen.ranks.slots.assign(chosen.ranks.slots.size(), experts);
  chosen.fits = true;
  std::map<std::tuple<const NodeGroup*, bool, int, int, int>, RankMemory> known;  // ranks are of a few kinds
  for (int rank = 0; rank < ranks; ++rank) {
    const int slots = experts > 0 ? chosen.ranks.slots[static_cast<std::size_t>(rank)] : 0;
    const auto [kind, fresh] = known.try_emplace(
        {&r.cluster.group_of(rank), rank == 0, rank % tp, sequences_on(r.workload, chosen.layout, rank),
         r.slice_experts ? static_cast<int>(weights.slice_part(ranks, rank) * 1e6) : slots});
    if (fresh) {
      kind->second = rank_memory(r.config, weights, r.workload, chosen.layout, r.cluster, rank,
                                 held_counts(r.config, weights, slots, ranks));
      chosen.fits &= holds(r.cluster.device_of(rank), kind->second, weights.dense_bytes(tp, rank % tp));
    }
    chosen.memory.push_back(kind->second);
  }
  return chosen;
}

/// The smallest value of a list for which `good` holds, by bisection: it must not hold again below.
std::optional<int> first(int low, int high, const std::function<bool(int)>& good) {
  if (!good(high)) return std::nullopt;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    good(middle) ? high = middle : low = middle + 1;
  }
  return low;
}

std::vector<std::string> changes_that_fit(const PlanRequest& request, const HeldWeights& weights) {
  std::vector<std::string> changes;
  PlanRequest r = request;
  const auto would_do = [&](const HeldWeights& held) { return makes_sense(r) && fits(r, held); };
  if (r.tensor_parallel > 0) {
    r.tensor_parallel = 0;
    if (would_do(weights)) changes.push_back("no --tensor-parallel: the dense parts as serve has them");
    r.tensor_parallel = request.tensor_parallel;
  }
  if (r.cluster.groups.size() == 1 && (r.cluster.inter_node.bytes_per_s > 0 || r.cluster.nodes() > 1)) {
    NodeGroup& group = r.cluster.groups[0];
    int high = group.nodes, most = longest_search_nodes;
    if (r.slice_experts) most = std::min(most, most_slices(r.config, r.precision) / group.ranks_per_node);
    const auto with_nodes = [&](int n) {
      group.nodes = n;
      return would_do(weights);
    };
    while (high < most && !with_nodes(high)) high = std::min(2 * high, most);
    const int now = request.cluster.groups[0].nodes;
    if (const auto n = high > now ? first(now + 1, high, with_nodes) : std::nullopt)
      changes.push_back(fmt::format("--nodes {} ({} ranks)", *n, *n * group.ranks_per_node));
    r.cluster = request.cluster;
  }
  const double now = static_cast<double>(checkpoint_bytes(r.config, request.precision, false));
  for (const char* name :
       {"fp8", "int8", "Q6_K", "int4", "Q4_K_M", "Q3_K_M", "Q2_K", "UD-Q2_K_XL", "UD-IQ2_XXS", "UD-IQ1_S"}) {
    if (std::string_view(name).starts_with("UD-") && r.config.architecture != Architecture::deepseek_v3) continue;
    r.precision = Precision::from_name(name);
    const auto bytes = static_cast<double>(checkpoint_bytes(r.config, r.precision, false));
    if (bytes >= now || !would_do(HeldWeights(r.config, r.precision, r.cluster.groups[0].device.kind, r.workload.mtp)))
      continue;
    changes.push_back(
        fmt::format("--precision {} ({:.0f} GB of weights instead of {:.0f})", name, bytes / 1e9, now / 1e9));
    break;
  }
  r.precision = request.precision;
  for (int context = request.workload.context / 2; context >= 256; context /= 2) {
    r.workload.context = context;
    if (!would_do(weights)) continue;
    changes.push_back(fmt::format("--context {}", context));
    break;
  }
  r.workload = request.workload;
  for (int n = request.workload.concurrency / 2; n >= 1; n /= 2) {
    r.workload.concurrency = n;
    if (!would_do(weights)) continue;
    changes.push_back(fmt::format("--concurrency {}", n));
    break;
  }
  return changes;
}

/// The fewest ranks of a node that would have to share the dense parts for it to fit; 0 where that would not do.
int sharing_that_fits(PlanRequest r, const HeldWeights& weights) {
  const int ranks = r.cluster.ranks(), node = r.cluster.largest_node();
  const bool gpus = r.cluster.groups[0].device.kind == Device::Kind::gpu && r.cluster.groups.size() == 1;
  for (r.tensor_parallel = 2; gpus && r.tensor_parallel <= node && ranks % r.tensor_parallel == 0;
       r.tensor_parallel *= 2)
    if (fits(r, weights)) return r.tensor_parallel;
  return 0;
}

void place(const PlanRequest& r, const ExpertRanks& ranks, Plan& plan) {
  if (r.slice_experts) {
    plan.experts = place_slices(r.config, ranks.size()).experts;
    plan.imbalance = largest_slice(r.config, r.precision, ranks.size());
  }
  plan.experts.resize(static_cast<std::size_t>(r.config.num_hidden_layers));
  if (r.slice_experts) return;
  plan.imbalance = 1;
  const std::vector<double> alike(static_cast<std::size_t>(r.config.n_routed_experts), 1.0);
  const double speeds = std::accumulate(ranks.speed.begin(), ranks.speed.end(), 0.0);
  std::optional<LayerPlacement> same;  // for all layers where no loads are known
  std::size_t moe_layer = 0;
  for (int layer = 0; layer < r.config.num_hidden_layers; ++layer) {
    if (!r.config.is_moe_layer(layer)) continue;
    const auto& loads = r.loads.empty() ? alike : r.loads[moe_layer++];
    if (!same || !r.loads.empty()) same = place_experts(loads, ranks, r.config.n_group);
    plan.experts[static_cast<std::size_t>(layer)] = *same;
    const auto sums = rank_loads(*same, loads, ranks);
    const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / speeds;
    const double imbalance = mean > 0 ? *std::max_element(sums.begin(), sums.end()) / mean : 1;
    plan.imbalance = std::max(plan.imbalance, imbalance);
    if (!r.loads.empty()) plan.mean_imbalance += imbalance / static_cast<double>(r.loads.size());
  }
}

}  // namespace

bool fits(const PlanRequest& request, const HeldWeights& weights) { return choose_layout(request, weights).fits; }

Plan make_plan(const PlanRequest& r) {
  check(r);
  Plan plan;
  const HeldWeights weights(r.config, r.precision, r.cluster.groups[0].device.kind, r.workload.mtp);
  const Chosen chosen = choose_layout(r, weights);
  const ParameterCounts counts = count_parameters(r.config, expected_tensors(r.config));
  plan.model = r.model;
  plan.precision = r.precision.name();
  plan.parameters = counts.total;
  plan.active_parameters = counts.active;
  plan.num_hidden_layers = r.config.num_hidden_layers;
  plan.n_routed_experts = r.config.n_routed_experts;
  plan.cluster = r.cluster;
  plan.workload = r.workload;
  plan.layout = chosen.layout;
  plan.redundant_experts = r.redundant_experts;
  plan.weights_bytes = static_cast<double>(checkpoint_bytes(r.config, r.precision, false));
  plan.kv_bytes_per_token = kv_bytes_per_token(r.config, r.workload.kv);
  plan.memory = chosen.memory;
  plan.fits = chosen.fits;
  if (!plan.fits) plan.changes = changes_that_fit(r, weights);
  if (!plan.fits && r.config.n_routed_experts > 0) plan.sharing_that_fits = sharing_that_fits(r, weights);
  if (r.config.n_routed_experts > 0) {
    place(r, chosen.ranks, plan);
    // Slots that no replica came to need no memory.
    for (int rank = 0; rank < plan.layout.ranks && !r.slice_experts; ++rank) {
      std::vector<int> held = held_counts(r.config, weights, 0, plan.layout.ranks);
      for (std::size_t layer = 0; layer < plan.experts.size(); ++layer)
        for (const auto& replicas : plan.experts[layer])
          for (const Replica& x : replicas) held[layer] += x.rank == rank;
      plan.memory[static_cast<std::size_t>(rank)] =
          rank_memory(r.config, weights, r.workload, plan.layout, r.cluster, rank, held);
    }
  }
  const SpeedModel speed(r.config, r.precision, r.cluster, plan.layout, r.workload, r.redundant_experts);
  const int prompt = r.prompt > 0 ? r.prompt : std::max(1, r.workload.context / 2);
  plan.prediction = predict(speed, r.workload, plan.layout, prompt, plan.mean_imbalance);
  return plan;
}

}  // namespace shoal
