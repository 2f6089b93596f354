#pragma once
#include <string>
#include <vector>

#include "planner/cluster.h"
#include "planner/expert_placement.h"
#include "planner/memory.h"
#include "planner/precision.h"
#include "planner/speed.h"

namespace shoal {

/// What a plan is wanted for.
struct PlanRequest {
  std::string model;  // as it was named
  ModelConfig config;
  Precision precision;
  Cluster cluster;
  Workload workload;
  int prompt = 0;                          // tokens of it, for times; 0: half of the context
  int redundant_experts = 0;               // further replicas a layer
  int tensor_parallel = 0;                 // 0: as the model is served; else a figure for other engines
  bool slice_experts = false;              // a slice of every expert on every rank
  std::vector<std::vector<double>> loads;  // [MoE layers][n_routed_experts], any unit; empty: all alike
};

/// Where everything goes, what it takes and how fast it will be. Plain data: written as JSON, read back by `serve
/// --plan`.
struct Plan {
  std::string model;
  std::string precision;
  std::int64_t parameters = 0, active_parameters = 0;
  int num_hidden_layers = 0, n_routed_experts = 0;
  Cluster cluster;
  Workload workload;
  Layout layout;
  int redundant_experts = 0;
  std::vector<LayerPlacement> experts;  // [num_hidden_layers], empty for layers without
  double imbalance = 1;                 // of the placement: largest rank load over the mean, worst layer
  double mean_imbalance = 0;            // mean over layers, which times follow; 0 where no loads are known

  double weights_bytes = 0;  // of a checkpoint, without MTP; ranks hold more where they share nothing
  double kv_bytes_per_token = 0;
  std::vector<RankMemory> memory;  // [ranks]
  bool fits = false;
  std::vector<std::string> changes;  // that would make it fit, each alone; empty where it does
  int sharing_that_fits = 0;  // --tensor-parallel with which it would fit, though serve does not run that; 0: none
  Prediction prediction;

  /// Whether serve runs this: what is planned without --tensor-parallel is, but where a CPU has a companion GPU.
  bool served() const;
  nlohmann::ordered_json to_json() const;
  /// Error names the field that is missing or wrong: experts that are nowhere or twice on a rank, shares that do not
  /// add up to one, ranks that there are not.
  static Plan from_json(const nlohmann::json& document, const std::string& place);
};

/// Error (wrong usage) where what is asked makes no sense: a context beyond the model's, a tensor parallelism that does
/// not divide the ranks, loads of another shape.
void check(const PlanRequest& request);

/// Error as check().
Plan make_plan(const PlanRequest& request);

/// Whether the most loaded rank's share fits, without placing anything; what searches use.
bool fits(const PlanRequest& request, const HeldWeights& weights);

}  // namespace shoal
