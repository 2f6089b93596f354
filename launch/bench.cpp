#include "launch/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>

#include "collectives/mpi.h"
#include "launch/bench_round.h"
#include "launch/job_options.h"
#include "launch/report.h"
#include "planner/cards.h"
#include "planner/precision.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

/// Bytes of weights as they are stored, by how often a step reads them.
struct StoredBytes {
  double every_step = 0;  // on one rank, where it holds them all
  double expert = 0;      // of a routed expert, in the mean
};

StoredBytes stored_bytes(const ModelConfig& config, const Checkpoint& checkpoint) {
  StoredBytes bytes;
  double experts = 0;
  int moe_layers = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) moe_layers += config.is_moe_layer(layer);
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const std::string behind = fmt::format("model.layers.{}.", config.num_hidden_layers);
    const bool mtp = name.rfind(behind, 0) == 0;
    const bool looked_up = name == "model.embed_tokens.weight" && !config.tie_word_embeddings;
    if (mtp || looked_up) continue;
    (name.find(".experts.") != std::string::npos ? experts : bytes.every_step) += static_cast<double>(tensor.bytes);
  }
  if (moe_layers > 0) bytes.expert = experts / (static_cast<double>(moe_layers) * config.n_routed_experts);
  return bytes;
}

/// Of the middle half: what else a machine does comes and goes, and a median jumps between its two states.
double middle(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto left_out = static_cast<std::ptrdiff_t>(values.size() / 4);
  const auto kept = std::span(values).subspan(std::size_t(left_out), values.size() - 2 * std::size_t(left_out));
  return std::accumulate(kept.begin(), kept.end(), 0.0) / static_cast<double>(kept.size());
}

Round middle(const std::vector<Round>& rounds) {
  const auto of = [&](double Round::*field) {
    std::vector<double> values;
    for (const Round& round : rounds) values.push_back(round.*field);
    return middle(values);
  };
  return {of(&Round::ttft_ms), of(&Round::prefill_tokens_per_s), of(&Round::decode_tokens_per_s), of(&Round::tpot_ms),
          of(&Round::experts_read_per_step)};
}

Json measure(Engine& engine, const BenchOptions& options) {
  const StoredBytes bytes = stored_bytes(engine.config, job_checkpoint(options.job));
  const bool sliced = engine.config.n_routed_experts == 0;  // over the ranks; else each has all but experts
  const double dense = bytes.every_step * (sliced ? 1 : engine.ranks);
  Json report = {{"model", engine.model_name},
                 {"weights", options.job.random_weights.empty() ? "model" : "random " + options.job.random_weights},
                 {"layers", engine.config.num_hidden_layers},
                 {"ranks", engine.ranks},
                 {"device", engine.workers.front().backend},
                 {"prompt_tokens", options.prompt_tokens},
                 {"output_tokens", options.output_tokens},
                 {"results", Json::array()}};
  std::uint64_t seed = 1;
  // Memory is touched for the first time; with the longest steps, or the first round would be slower than the rest.
  run_round(engine, {std::ranges::max(options.concurrency), options.prompt_tokens, 4}, seed++);
  for (const int concurrency : options.concurrency) {
    std::vector<Round> rounds;
    for (int i = 0; i < options.repeat; ++i)
      rounds.push_back(run_round(engine, {concurrency, options.prompt_tokens, options.output_tokens}, seed++));
    const Round round = middle(rounds);
    const double step_bytes = dense + round.experts_read_per_step * bytes.expert;
    report["results"].push_back({{"concurrency", concurrency},
                                 {"ttft_ms", round.ttft_ms},
                                 {"prefill_tokens_per_s", round.prefill_tokens_per_s},
                                 {"decode_tokens_per_s", round.decode_tokens_per_s},
                                 {"tpot_ms", round.tpot_ms},
                                 {"experts_read_per_step", round.experts_read_per_step},
                                 {"weight_bytes_per_step", step_bytes},
                                 {"weight_gb_per_s", round.tpot_ms > 0 ? 1e-6 * step_bytes / round.tpot_ms : 0}});
  }
  return report;
}

void print_measured(const Json& report) {
  fmt::print("{} ({}), {} layers, {} rank{}, {}; prompts of {} tokens, answers of {} and more\n\n",
             report["model"].get<std::string>(), report["weights"].get<std::string>(), report["layers"].get<int>(),
             report["ranks"].get<int>(), report["ranks"] == 1 ? "" : "s", report["device"].get<std::string>(),
             report["prompt_tokens"].get<int>(), report["output_tokens"].get<int>());
  fmt::print("{:>11} {:>13} {:>13} {:>14} {:>12} {:>13} {:>13}\n", "concurrency", "first tok. ms", "prefill tok/s",
             "decode tok/s", "step ms", "weights MB", "weights GB/s");
  for (const Json& r : report["results"])
    fmt::print("{:>11} {:>13.1f} {:>13.1f} {:>14.1f} {:>12.2f} {:>13.1f} {:>13.1f}\n", r["concurrency"].get<int>(),
               r["ttft_ms"].get<double>(), r["prefill_tokens_per_s"].get<double>(),
               r["decode_tokens_per_s"].get<double>(), r["tpot_ms"].get<double>(),
               1e-6 * r["weight_bytes_per_step"].get<double>(), r["weight_gb_per_s"].get<double>());
}

}  // namespace

CLI::App* add_bench(CLI::App& root, BenchOptions& options) {
  CLI::App* app = root.add_subcommand("bench", "Measure how fast a model reads prompts and answers, by concurrency");
  add_job_options(*app, options.job);
  app->get_option("--model")->required(false)->description(
      "The model: a Hugging Face folder, a GGUF file, or with --weights random a card; with --url the server's name "
      "for it");
  app->add_option("--weights", options.weights, "model, or random: made up, for a model whose weights you lack")
      ->check(CLI::IsMember({"model", "random"}));
  app->add_option("--precision", options.precision,
                  "Of random weights: bf16, f16, fp8, a GGUF type or mix (Q4_K_M); empty: what the checkpoint holds");
  app->add_option("--layers", options.job.layers, "With random weights: only the first so many; 0: all")
      ->check(at_least(0));
  app->add_option("--concurrency", options.concurrency,
                  "Requests at once, one measurement each [default: 1,4,16; with --url 1,2,4 ... 64]")
      ->delimiter(',')
      ->check(at_least(1));
  add_url_options(*app, options.load);
  app->add_option("--prompt-tokens", options.prompt_tokens, "Of each request")->check(at_least(1));
  app->add_option("--output-tokens", options.output_tokens, "Of each request, while no prompt is being read")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--repeat", options.repeat, "Of each measurement; the mean of the middle half is told")
      ->check(at_least(1));
  CLI::Option* json = app->add_flag("--json", options.json, "Print JSON");
  app->add_flag("--csv", options.csv, "Print the results as CSV")->excludes(json);
  return app;
}

int bench(const BenchOptions& asked, int* argc, char*** argv) {
  BenchOptions options = asked;
  if (!options.load.url.empty()) {
    if (read_launch_environment().rank != 0) return 0;
    options.load.model = options.job.model.string();
    options.load.prompt_tokens = options.prompt_tokens;
    options.load.output_tokens = options.output_tokens;
    if (!options.concurrency.empty()) options.load.concurrency = options.concurrency;
    return bench_url(options.load, options.json, options.csv);
  }
  if (options.job.model.empty()) throw Error("bench: --model or --url is required", ExitCode::usage);
  if (options.output_tokens < 2)
    throw Error("bench: --output-tokens must be at least 2 without --url", ExitCode::usage);
  if (options.concurrency.empty()) options.concurrency = {1, 4, 16};
  if (options.weights == "random") {
    const ModelConfig config = find_model(options.job.model.string());
    options.job.random_weights = options.precision.empty() ? Precision::of_config(config).name() : options.precision;
  } else if (options.job.layers > 0 || !options.precision.empty()) {
    throw Error("bench: --layers and --precision go with --weights random", ExitCode::usage);
  }
  // All requests are one client's, who may fill half of the places.
  options.job.max_waiting = std::max(options.job.max_waiting, 2 * std::ranges::max(options.concurrency));
  return run_job(argc, argv, options.job, [&](Engine& engine) {
    if (!options.job.quiet && !options.json && !options.csv) fmt::print(stderr, "{}\n", engine.summary);
    const Json report = measure(engine, options);
    if (options.csv)
      print_csv(report);
    else
      print_report(report, options.json, print_measured);
    return 0;
  });
}

}  // namespace shoal
