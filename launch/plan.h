#pragma once
#include <CLI/CLI.hpp>
#include <optional>
#include <string>

namespace shoal {

/// `shoal plan`: whether a model fits on a cluster, where its experts go and how fast it will be.
struct PlanOptions {
  std::string model;
  std::string cluster;
  std::string precision;  // empty: what the checkpoint holds
  std::string kv_type = "bf16";
  std::string loads;  // JSON file: [MoE layers][experts]
  bool pin = false;   // threads, where this machine is measured
  int nodes = 0;      // 0: the card's
  int context = 4096;
  int concurrency = 1;
  int prompt = 0;
  std::optional<int> max_batched_tokens;  // none: default_step_tokens()
  int redundant_experts = 0;
  int tensor_parallel = 0;
  bool slice_experts = false;
  bool mtp = false;
  bool json = false;
  bool table = false;

  bool sweep = false;
  double target_tpot_ms = 0;  // 0: none
  std::string plot;           // SVG file; empty: none

  bool simulate = false;
  std::string trace;  // JSON file: [[at_s, prompt, output], ...]; empty: Poisson arrivals
  double rate = 1;    // requests a second
  int requests = 1000;
  int output = 200;
  double prefix_hits = 0;
  int prefill_nodes = 0;  // nodes that compute prompts alone; 0: all do both
};

CLI::App* add_plan(CLI::App& root, PlanOptions& options);

/// Prints to stdout if it `speaks`. Returns 0 where the model fits, 3 where it does not. Throws Error on nonsense.
/// Every rank calls it: `--cluster auto` measures with all of them.
int plan(const PlanOptions& options, bool speaks, int* argc, char*** argv);

}  // namespace shoal
