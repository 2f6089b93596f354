#include "launch/plan.h"

#include <fmt/format.h>

#include <map>

#include "base/error.h"
#include "base/units.h"
#include "launch/plan_search.h"
#include "launch/plan_table.h"
#include "launch/this_machine.h"
#include "planner/cards.h"
#include "planner/plan.h"
#include "runtime/gguf.h"
#include "runtime/model_source.h"

namespace shoal {
namespace {

constexpr double most_load = 1e18;
constexpr int most_nodes = 1 << 16, most_requests = 10'000'000;

/// A list of layers, or an object whose `layers` names them by number, as launch/demo-model/expert_load.json does; what
/// it has of MTP layers, which are behind the others, is left aside.
std::vector<std::vector<double>> read_loads(const std::string& path, const ModelConfig& config) {
  const auto document = read_json_file(path, std::uint64_t{256} << 20);
  const auto wrong = [&] {
    fail("{}: must be a list, for each layer with experts, of a number for each expert", path);
  };
  std::map<int, const nlohmann::json*> layers;
  if (document.is_array()) {
    for (const auto& layer : document) layers[static_cast<int>(layers.size())] = &layer;
  } else if (document.is_object() && document.contains("layers") && document["layers"].is_object()) {
    for (const auto& [name, layer] : document["layers"].items()) {
      if (name.empty() || name.size() > 5 || name.find_first_not_of("0123456789") != std::string::npos) wrong();
      layers[std::stoi(name)] = &layer;
    }
  } else {
    wrong();
  }
  std::vector<std::vector<double>> loads;
  for (const auto& [number, layer] : layers) {
    if (!layer->is_array()) wrong();
    if (document.is_object() && number >= config.num_hidden_layers) continue;
    auto& numbers = loads.emplace_back();
    for (const auto& load : *layer) {
      if (!load.is_number()) wrong();
      numbers.push_back(load.get<double>());
      if (numbers.back() < 0 || numbers.back() > most_load)
        fail("{}: layer {}, expert {}: a load of {}, outside [0, {:g}]", path, number, numbers.size() - 1,
             numbers.back(), most_load);
    }
  }
  return loads;
}

/// A card or a file; "auto" is what the ranks of this job find.
Cluster read_cluster(const PlanOptions& o, const PlanRequest& r, int* argc, char*** argv) {
  if (o.cluster != "auto") return find_cluster(o.cluster);
  const LaunchEnvironment launch = read_launch_environment();
  const Compute compute = o.kv_type == "f32" ? Compute::f32 : Compute::bf16;
  if (!launch.launched)
    return measure_cluster(*make_self_communicator(), launch, compute, r.config, r.precision, o.pin);
  MpiJob mpi(argc, argv);
  return measure_cluster(*mpi.world(), launch, compute, r.config, r.precision, o.pin);
}

PlanRequest read_request(const PlanOptions& o, int* argc, char*** argv) {
  const bool gguf = is_gguf(o.model);
  PlanRequest r{.model = o.model, .config = gguf ? read_model_config(o.model) : find_model(o.model), .precision = {}};
  r.precision = !o.precision.empty() ? Precision::from_name(o.precision)
                : gguf               ? stored_precision(o.model, r.config)
                                     : Precision::of_config(r.config);
  r.cluster = read_cluster(o, r, argc, argv);
  if (o.nodes > 0) {
    if (r.cluster.groups.size() != 1) throw Error("--nodes is for clusters of equal nodes", ExitCode::usage);
    int& nodes = r.cluster.groups[0].nodes;
    r.cluster.price_per_hour *= static_cast<double>(o.nodes) / nodes;
    nodes = o.nodes;
    if (o.nodes > 1 && r.cluster.inter_node.bytes_per_s <= 0)
      throw Error(fmt::format("cluster {}: inter_node is missing, and --nodes is {}", o.cluster, o.nodes),
                  ExitCode::usage);
  }
  r.workload = {.context = o.context,
                .concurrency = o.concurrency,
                .kv = kv_type_from(o.kv_type),
                .max_batched_tokens = o.max_batched_tokens.value_or(
                    default_step_tokens(r.cluster.device_of(0).kind == Device::Kind::gpu)),
                .bf16_rows = o.kv_type != "f32",
                .mtp = o.mtp};
  r.prompt = o.prompt;
  r.redundant_experts = o.redundant_experts;
  r.tensor_parallel = o.tensor_parallel;
  r.slice_experts = o.slice_experts;
  if (!o.loads.empty()) r.loads = read_loads(o.loads, r.config);
  return r;
}

/// "1 node", "2 nodes".
std::string counted(std::int64_t n, const char* what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

/// Of experts over ranks, and what times follow from where that is another figure.
std::string loads_of_ranks(const Plan& p) {
  const std::string worst = fmt::format("the most loaded rank has {:.2f} times the mean", p.imbalance);
  if (p.mean_imbalance > 0) return fmt::format("{} in the worst layer, {:.2f} on average", worst, p.mean_imbalance);
  if (p.layout.ranks == 1) return worst;
  return fmt::format("{} where all experts are alike; times assume {:.2f}", worst, SpeedConstants{}.imbalance);
}

void print_plan(const Plan& p) {
  fmt::print("model       {}, {} parameters ({} active), {} with {} of weights\n", p.model, human_count(p.parameters),
             human_count(p.active_parameters), p.precision, human_bytes(p.weights_bytes));
  fmt::print("cluster     {}: {}, {}\n", p.cluster.name, counted(p.cluster.nodes(), "node"),
             counted(p.layout.ranks, "rank"));
  fmt::print("workload    {} of {}; {} of KV cache a token ({})\n", counted(p.workload.concurrency, "sequence"),
             counted(p.workload.context, "token"), human_bytes(p.kv_bytes_per_token), name_of(p.workload.kv));
  if (p.layout.tensor_parallel > 1)
    fmt::print("layout      dense parts over {} ranks{}\n", p.layout.tensor_parallel,
               p.layout.ranks > p.layout.tensor_parallel ? ", sequences over the groups of them" : "");
  if (!p.served()) fmt::print("            serve does not run this layout: these are figures for other engines\n");
  if (p.layout.sliced_experts)
    fmt::print("experts     {} a layer, each sliced over {}\n", p.n_routed_experts, counted(p.layout.ranks, "rank"));
  else if (p.n_routed_experts > 0)
    fmt::print("experts     {} a layer{} over {}; {}\n", p.n_routed_experts,
               p.redundant_experts > 0 ? fmt::format(" and {}", counted(p.redundant_experts, "further replica")) : "",
               counted(p.layout.ranks, "rank"), loads_of_ranks(p));

  // Ranks that hold the same are one line.
  fmt::print("\n{:<16}{:>11}{:>11}{:>13}{:>11}{:>11}{:>11}{:>12}\n", "ranks", "weights", "KV cache", "activations",
             "exchange", "reserve", "total", "of");
  for (std::size_t first = 0; first < p.memory.size();) {
    std::size_t last = first;
    const auto same = [&](std::size_t r) {
      return p.memory[r].total() == p.memory[first].total() &&
             p.cluster.device_of(static_cast<int>(r)).memory_bytes ==
                 p.cluster.device_of(static_cast<int>(first)).memory_bytes;
    };
    while (last + 1 < p.memory.size() && same(last + 1)) ++last;
    const RankMemory& m = p.memory[first];
    const Device& device = p.cluster.device_of(static_cast<int>(first));
    fmt::print("{:<16}{:>11}{:>11}{:>13}{:>11}{:>11}{:>11}{:>12}\n",
               first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last), human_bytes(m.weights),
               human_bytes(m.kv), human_bytes(m.activations), human_bytes(m.exchange), human_bytes(m.reserve),
               human_bytes(m.total()), human_bytes(device.memory_bytes));
    if (device.companion)
      fmt::print("{:<16}{:>68}{:>12}\n", "  of it, GPU", human_bytes(m.companion),
                 human_bytes(device.companion->memory_bytes));
    first = last + 1;
  }
  if (!p.fits) {
    fmt::print("\nIt does NOT fit.");
    if (!p.changes.empty())
      fmt::print(" {}:\n  {}", p.changes.size() == 1 ? "This would make it fit" : "Any one of these would make it fit",
                 fmt::join(p.changes, "\n  "));
    if (p.sharing_that_fits > 0)
      fmt::print("\nIt would where {} ranks share the dense parts (--tensor-parallel {}), which serve does not do.",
                 p.sharing_that_fits, p.sharing_that_fits);
    fmt::print("\n");
    return;
  }
  const Prediction& t = p.prediction;
  fmt::print("\nIt fits.\n\n");
  fmt::print("first token {:>9.1f} ms      prompts {:>10.0f} tokens/s on all ranks\n", t.ttft_ms,
             t.prefill_tokens_per_s);
  fmt::print("each next   {:>9.1f} ms      answers {:>10.0f} tokens/s, {:.1f} for each sequence\n", t.tpot_ms,
             t.decode_tokens_per_s, 1000 / t.tpot_ms);
  if (p.workload.mtp) fmt::print("These times are without guesses of the MTP layer.\n");
  const StepTime& d = t.decode;
  const double sum = d.dense + d.attention + d.experts + d.activations + d.exchange + d.fixed;
  fmt::print(
      "of a decoding step: dense {:.1f}, attention {:.1f}, experts {:.1f}, activations {:.1f}, exchange {:.1f}, ",
      d.dense / 1e3, d.attention / 1e3, d.experts / 1e3, d.activations / 1e3, d.exchange / 1e3);
  fmt::print("fixed {:.1f} ms{}\n", d.fixed / 1e3,
             sum > d.total * 1.001 ? fmt::format("; {:.1f} ms of them overlap", (sum - d.total) / 1e3) : "");
}

}  // namespace

CLI::App* add_plan(CLI::App& root, PlanOptions& o) {
  CLI::App* app =
      root.add_subcommand("plan", "Say whether a model fits on machines, where it goes and how fast it will be");
  app->add_option("--model", o.model, "Model card (deepseek-r1), Hugging Face folder, config.json or GGUF file");
  app->add_option("--cluster", o.cluster,
                  "Cluster card (h800x8), JSON file, or auto: this machine, measured by the ranks of this job");
  app->add_flag("--pin", o.pin, "With --cluster auto: as serve --pin, each thread on a core of its own");
  app->add_option("--nodes", o.nodes, "Nodes of the cluster; 0: what its card says")->check(CLI::Range(0, most_nodes));
  app->add_option("--precision", o.precision,
                  "bf16, fp8, int8, int4, a GGUF type (Q4_K_M) or mix (UD-IQ1_S); empty: what the checkpoint holds");
  app->add_option(
      "--kv-type", o.kv_type,
      "Type of the KV cache: f32, bf16, fp8, int8; computing is in bf16 but for f32, which is serve's own default");
  app->add_option("--context", o.context, "Tokens of a sequence, prompt and answer");
  app->add_option("--concurrency", o.concurrency, "Sequences at once, over all ranks");
  app->add_option("--prompt", o.prompt, "Tokens of a prompt, for times; 0: half of the context");
  app->add_option("--max-batched-tokens", o.max_batched_tokens,
                  "Tokens of one rank in one step; without: 512, on GPUs 2048")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--redundant-experts", o.redundant_experts, "Further replicas of experts in each layer");
  app->add_option(
      "--loads", o.loads,
      "JSON file with the load of each expert: [layers with experts][experts], or {\"layers\": {\"3\": [...]}}");
  app->add_option("--tensor-parallel", o.tensor_parallel,
                  "Ranks that share the dense parts, as other engines have it; 0: as serve runs the model");
  app->add_flag("--slice-experts", o.slice_experts,
                "A slice of every expert on every rank: the least time for a single user, more to exchange");
  app->add_option_function<std::string>(
         "--speculative", [&o](const std::string& how) { o.mtp = how == "mtp"; },
         "Guess tokens ahead, which takes the MTP layer's weights and cache (times are without it): none, mtp")
      ->check(CLI::IsMember({"none", "mtp"}))
      ->default_str("none");
  app->add_flag("--json", o.json, "Print the plan as JSON, which 'serve --plan' reads");
  app->add_flag("--table", o.table,
                "Print memory by context and concurrency, and the smallest bundled cluster for each");
  const std::string group = "Search and simulation";
  CLI::Option* sweep = app->add_flag("--sweep", o.sweep,
                                     "Find the best layout on up to --nodes nodes, and print the Pareto front; without "
                                     "--precision in int8 and Q4_K_M too");
  app->add_option("--target-tpot-ms", o.target_tpot_ms, "With --sweep: the slowest next token that is good enough")
      ->needs(sweep);
  app->add_option("--plot", o.plot, "With --sweep: write a drawing of all layouts to this SVG file")->needs(sweep);
  CLI::Option* simulate = app->add_flag("--simulate", o.simulate, "Play a trace of requests on the planned layout");
  app->add_option("--trace", o.trace,
                  "JSON file of [seconds, prompt tokens, answer tokens]; without it: random arrivals")
      ->needs(simulate);
  app->add_option("--rate", o.rate, "Requests a second")->needs(simulate);
  app->add_option("--requests", o.requests, "Requests in all")->check(CLI::Range(1, most_requests))->needs(simulate);
  app->add_option("--output", o.output, "Tokens of an answer")->check(CLI::Range(1, 1 << 30))->needs(simulate);
  app->add_option("--prefix-hits", o.prefix_hits, "Part of the prompt tokens that the prefix cache has")
      ->needs(simulate);
  app->add_option("--prefill-nodes", o.prefill_nodes,
                  "Nodes that compute prompts and nothing else; 0: all do both. Moving their cache counts as no time")
      ->needs(simulate);
  sweep->excludes(simulate);
  // The search tries its own.
  for (const char* tried : {"--concurrency", "--redundant-experts", "--loads", "--slice-experts"})
    sweep->excludes(app->get_option(tried));
  for (const char* name : {"--sweep", "--target-tpot-ms", "--plot", "--simulate", "--trace", "--rate", "--requests",
                           "--output", "--prefix-hits", "--prefill-nodes"})
    app->get_option(name)->group("Search and simulation");
  return app;
}

namespace {

void refuse_outside(const char* option, double value, double low, double high) {
  if (!(value >= low && value <= high))
    throw Error(fmt::format("{} is {}, outside [{:g}, {:g}]", option, value, low, high), ExitCode::usage);
}

}  // namespace

int plan(const PlanOptions& options, bool speaks, int* argc, char*** argv) {
  refuse_outside("--rate", options.rate, 1e-9, 1e9);
  refuse_outside("--prefix-hits", options.prefix_hits, 0, 1);
  refuse_outside("--target-tpot-ms", options.target_tpot_ms, 0, 1e12);
  if (options.table) {
    if (!speaks) return 0;
    using Names = std::vector<std::string>;
    fmt::print("{}", plan_table(options.model.empty() ? Names{} : Names{options.model},
                                options.precision.empty() ? Names{} : Names{options.precision}));
    return 0;
  }
  if (options.model.empty())
    throw Error("--model is required (a card, a folder, a config.json or a GGUF file)", ExitCode::usage);
  if (options.cluster.empty()) throw Error("--cluster is required (a card, a JSON file or auto)", ExitCode::usage);
  if (options.pin && options.cluster != "auto") throw Error("--pin goes with --cluster auto", ExitCode::usage);
  const PlanRequest request = read_request(options, argc, argv);
  if (options.sweep) return print_sweep(request, options, speaks);
  if (options.simulate) return print_simulation(request, options, speaks);
  const Plan result = make_plan(request);
  if (speaks && options.json)
    fmt::print("{}\n", result.to_json().dump());
  else if (speaks)
    print_plan(result);
  return static_cast<int>(result.fits ? ExitCode::ok : ExitCode::does_not_fit);
}

}  // namespace shoal
