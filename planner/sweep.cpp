#include "planner/sweep.h"

#include <algorithm>

#include "base/error.h"
#include "planner/expert_slices.h"

namespace shoal {

std::vector<Operating> sweep(const PlanRequest& request, const std::vector<Precision>& precisions) {
  check(request);
  if (request.cluster.groups.size() > 1) throw Error("--sweep is for clusters of equal nodes", ExitCode::usage);
  std::vector<Operating> all;
  const Device& device = request.cluster.groups[0].device;
  const bool moe = request.config.n_routed_experts > 0;
  const int prompt = request.prompt > 0 ? request.prompt : std::max(1, request.workload.context / 2);
  const int most_nodes = request.cluster.groups[0].nodes, per_node = request.cluster.groups[0].ranks_per_node;
  for (const Precision& precision : precisions) {
    PlanRequest r = request;
    r.precision = precision;
    const int slices = most_slices(r.config, r.precision);
    const HeldWeights weights(r.config, r.precision, device.kind, r.workload.mtp);
    for (int nodes = 1;; nodes = std::min(nodes * 2, most_nodes)) {
      r.cluster.groups[0].nodes = nodes;
      const int ranks = nodes * per_node;
      const int tp = request.tensor_parallel > 0 ? request.tensor_parallel
                                                 : served_tensor_parallel(r.config.n_routed_experts, ranks);
      struct Experts {
        int redundant;
        bool sliced;
      };
      for (const auto& [redundant, sliced] :
           {Experts{0, false}, Experts{r.config.n_routed_experts / 8, false}, Experts{0, true}}) {
        if ((sliced && slices < ranks) || ranks % tp != 0) continue;
        if (redundant > 0 && ranks == 1) continue;  // nowhere to put a replica
        r.redundant_experts = redundant;
        r.slice_experts = sliced;
        const Layout layout{ranks, tp, redundant > 0, sliced};
        const SpeedModel speed(r.config, r.precision, r.cluster, layout, r.workload, redundant);
        for (int each = 1; each <= 1024; each *= 2) {
          r.workload.concurrency = each * ranks;
          if (!fits(r, weights)) break;  // more sequences take more memory
          const Prediction p = predict(speed, r.workload, layout, prompt, 0);
          all.push_back({nodes, tp, redundant, sliced, precision.name(), r.workload.concurrency, p.tpot_ms, p.ttft_ms,
                         p.decode_tokens_per_s, p.decode_tokens_per_s / nodes});
        }
        if (!moe) break;
      }
      if (nodes == most_nodes) break;
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Operating& a, const Operating& b) { return a.tpot_ms < b.tpot_ms; });
  return all;
}

std::vector<Operating> pareto_front(const std::vector<Operating>& all) {
  std::vector<Operating> front;
  for (const Operating& o : all)
    if (front.empty() || o.decode_tokens_per_s_per_node > front.back().decode_tokens_per_s_per_node) front.push_back(o);
  return front;
}

}  // namespace shoal
