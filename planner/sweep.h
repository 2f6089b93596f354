#pragma once
#include <vector>

#include "planner/plan.h"

namespace shoal {

/// One way of running a model, and what it gives.
struct Operating {
  int nodes = 0;
  int tensor_parallel = 1;
  int redundant_experts = 0;
  bool sliced_experts = false;
  std::string precision;
  int concurrency = 0;
  double tpot_ms = 0;
  double ttft_ms = 0;
  double decode_tokens_per_s = 0;  // of all nodes
  double decode_tokens_per_s_per_node = 0;
};

/// All layouts that fit among: nodes 1, 2, 4 ... up to the cluster's, 0 or an eighth of the experts redundant, or each
/// in slices over all ranks, the given precisions, 1, 2, 4 ... 1024 sequences a rank; the dense parts as serve has them
/// or as the request does. Ascending by tpot_ms. Error (wrong usage) as make_plan, and for unequal nodes.
std::vector<Operating> sweep(const PlanRequest& request, const std::vector<Precision>& precisions);

/// Those that no other beats both in time for a token and in tokens a second and node.
std::vector<Operating> pareto_front(const std::vector<Operating>& all);

}  // namespace shoal
