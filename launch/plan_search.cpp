#include "launch/plan_search.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "launch/sweep_plot.h"
#include "planner/simulation.h"
#include "planner/sweep.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const Operating& o) {
  return {{"nodes", o.nodes},
          {"tensor_parallel", o.tensor_parallel},
          {"redundant_experts", o.redundant_experts},
          {"sliced_experts", o.sliced_experts},
          {"precision", o.precision},
          {"concurrency", o.concurrency},
          {"tpot_ms", o.tpot_ms},
          {"ttft_ms", o.ttft_ms},
          {"decode_tokens_per_s", o.decode_tokens_per_s},
          {"decode_tokens_per_s_per_node", o.decode_tokens_per_s_per_node}};
}

std::vector<Arrival> read_trace(const std::string& path) {
  const auto document = read_json_file(path, std::uint64_t{256} << 20);
  const auto wrong = [&] {
    fail("{}: must be a list of [seconds, prompt tokens, answer tokens], the tokens 1 and above", path);
  };
  if (!document.is_array() || document.empty()) wrong();
  std::vector<Arrival> arrivals;
  for (const auto& entry : document) {
    const bool good = entry.is_array() && entry.size() == 3 && entry[0].is_number() && entry[1].is_number_integer() &&
                      entry[2].is_number_integer();
    if (!good) wrong();
    for (const std::size_t i : {1u, 2u})  // before they become an int, which holds less
      if (const double n = entry[i].get<double>(); n < 1 || n > 1e9) wrong();
    const Arrival a{entry[0].get<double>(), entry[1].get<int>(), entry[2].get<int>()};
    if (!(a.at_s >= 0 && a.at_s <= 1e9)) wrong();
    arrivals.push_back(a);
  }
  std::stable_sort(arrivals.begin(), arrivals.end(),
                   [](const Arrival& a, const Arrival& b) { return a.at_s < b.at_s; });
  return arrivals;
}

/// Tokens of cache that a tensor-parallel group has room for beside the weights, of a plan with a sequence of one page
/// on each.
double kv_room(const Plan& p) {
  double least = 1e300;
  for (std::size_t rank = 0; rank < p.memory.size(); ++rank) {
    const Device& device = p.cluster.device_of(static_cast<int>(rank));
    const RankMemory& m = p.memory[rank];
    const double left =
        device.companion ? device.companion->memory_bytes - m.companion : device.memory_bytes - m.total();
    if (m.kv > 0) least = std::min(least, (left + m.kv) / (m.kv / kv_page_tokens));
  }
  return least;
}

/// Ranks that work together, and what they can do at once.
struct Pool {
  Layout layout;
  SpeedModel speed;
  SimulationOptions options;
};

Pool make_pool(const PlanRequest& request, const PlanOptions& o, int nodes) {
  PlanRequest r = request;
  if (nodes > 0) r.cluster.groups[0].nodes = nodes;
  const int ranks = r.cluster.ranks();
  const int tp = r.tensor_parallel > 0 ? r.tensor_parallel : served_tensor_parallel(r.config.n_routed_experts, ranks);
  r.workload.concurrency = std::max(1, ranks / tp);
  r.workload.context = 1;
  r.prompt = 0;
  const Plan p = make_plan(r);
  if (!p.fits)
    throw Error("the weights alone do not fit; 'shoal plan' without --simulate says what would",
                ExitCode::does_not_fit);
  return {p.layout,
          SpeedModel(r.config, r.precision, r.cluster, p.layout, r.workload, r.redundant_experts),
          {.max_num_seqs = 256,
           .max_batched_tokens = r.workload.max_batched_tokens,
           .max_prefill_tokens = default_prefill_tokens(r.cluster.groups[0].device.kind == Device::Kind::gpu),
           .kv_tokens = kv_room(p),
           .prefix_hit_fraction = o.prefix_hits,
           .imbalance = p.mean_imbalance}};
}

}  // namespace

int print_sweep(const PlanRequest& request, const PlanOptions& o, bool speaks) {
  std::vector<Precision> precisions = {request.precision};
  if (o.precision.empty())
    for (const char* other : {"int8", "Q4_K_M"}) precisions.push_back(Precision::from_name(other));
  const auto all = sweep(request, precisions);
  const auto front = pareto_front(all);
  const Operating* best = nullptr;
  for (const Operating& x : front)
    if (o.target_tpot_ms <= 0 || x.tpot_ms <= o.target_tpot_ms) best = &x;  // the front's throughput rises
  if (speaks && !o.plot.empty()) {
    std::ofstream file(o.plot);
    file << sweep_plot(all, front,
                       fmt::format("{} on up to {} nodes of {}", request.model, request.cluster.nodes(), o.cluster),
                       o.target_tpot_ms);
    if (!file.flush()) fail("{} could not be written", o.plot);
  }
  if (speaks && o.json) {
    Json json = {{"tried", all.size()}, {"front", Json::array()}, {"best", best ? to_json(*best) : Json(nullptr)}};
    for (const Operating& x : front) json["front"].push_back(to_json(x));
    fmt::print("{}\n", json.dump());
  } else if (speaks) {
    fmt::print("{} layouts fit; those that no other beats both in time and in throughput:\n\n", all.size());
    fmt::print("{:>5} {:>9} {:>9} {:>10} {:>12} {:>9} {:>9} {:>12} {:>12}\n", "nodes", "precision", "tensor p.",
               "replicas", "sequences", "tpot ms", "ttft ms", "tokens/s", "a node");
    for (const Operating& x : front)
      fmt::print("{:>5} {:>9} {:>9} {:>10} {:>12} {:>9.1f} {:>9.0f} {:>12.0f} {:>12.0f}{}\n", x.nodes, x.precision,
                 x.tensor_parallel, x.sliced_experts ? "slices" : fmt::format("{}", x.redundant_experts), x.concurrency,
                 x.tpot_ms, x.ttft_ms, x.decode_tokens_per_s, x.decode_tokens_per_s_per_node,
                 &x == best ? "  <- best" : "");
    if (!best) fmt::print("\n{}\n", all.empty() ? "Nothing fits." : "None meets the target.");
  }
  return static_cast<int>(best ? ExitCode::ok : ExitCode::does_not_fit);
}

int print_simulation(const PlanRequest& request, const PlanOptions& o, bool speaks) {
  const int prompt = o.prompt > 0 ? o.prompt : std::max(1, o.context / 2);
  const auto arrivals =
      o.trace.empty() ? poisson_arrivals(o.requests, o.rate, prompt, o.output, 1) : read_trace(o.trace);
  const int nodes = request.cluster.groups[0].nodes;
  if (o.prefill_nodes > 0 && request.cluster.groups.size() > 1)
    throw Error("--prefill-nodes is for clusters of equal nodes", ExitCode::usage);
  if (o.prefill_nodes < 0 || o.prefill_nodes >= nodes)
    throw Error(fmt::format("--prefill-nodes is {}, and must leave some of the {} nodes", o.prefill_nodes, nodes),
                ExitCode::usage);
  SimulationResult r;
  if (o.prefill_nodes > 0) {
    const Pool first = make_pool(request, o, o.prefill_nodes), rest = make_pool(request, o, nodes - o.prefill_nodes);
    r = simulate_disaggregated(arrivals, first.speed, first.layout, first.options, rest.speed, rest.layout,
                               rest.options);
  } else {
    const Pool all = make_pool(request, o, 0);
    r = simulate(arrivals, all.speed, all.layout, all.options);
  }
  const double price = request.cluster.price_per_hour / 3600 * r.seconds;
  double tokens = 0;
  for (const Arrival& a : arrivals) tokens += a.output;
  const auto list = [](const Percentiles& p) { return Json{{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}}; };
  Json json = {{"requests", arrivals.size()},
               {"seconds", r.seconds},
               {"ttft_ms", list(r.ttft_ms)},
               {"tpot_ms", list(r.tpot_ms)},
               {"output_tokens_per_s", r.output_tokens_per_s},
               {"output_tokens_per_s_per_node", r.output_tokens_per_s / request.cluster.nodes()},
               {"mean_sequences_per_group", r.mean_batch}};
  if (price > 0) json["price_per_million_tokens"] = price / tokens * 1e6;
  if (speaks && o.json) fmt::print("{}\n", json.dump());
  if (speaks && !o.json) {
    fmt::print("{} requests in {:.1f} s on {} ranks\n\n", arrivals.size(), r.seconds, request.cluster.ranks());
    fmt::print("{:<22}{:>10}{:>10}{:>10}\n", "", "p50", "p90", "p99");
    fmt::print("{:<22}{:>10.1f}{:>10.1f}{:>10.1f}\n", "first token, ms", r.ttft_ms.p50, r.ttft_ms.p90, r.ttft_ms.p99);
    fmt::print("{:<22}{:>10.1f}{:>10.1f}{:>10.1f}\n", "each next, ms", r.tpot_ms.p50, r.tpot_ms.p90, r.tpot_ms.p99);
    fmt::print("\n{:.0f} tokens/s, {:.0f} a node\n", r.output_tokens_per_s,
               r.output_tokens_per_s / request.cluster.nodes());
    if (price > 0) fmt::print("{:.2f} for a million tokens\n", price / tokens * 1e6);
  }
  return 0;
}

}  // namespace shoal
