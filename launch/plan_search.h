#pragma once
#include <string>

#include "launch/plan.h"
#include "planner/plan.h"

namespace shoal {

/// `plan --sweep`: the Pareto front of layouts, and the best one for a target. Exit code 3 where nothing fits or meets
/// it.
int print_sweep(const PlanRequest& request, const PlanOptions& options, bool speaks);

/// `plan --simulate`: a trace of requests on the planned layout.
int print_simulation(const PlanRequest& request, const PlanOptions& options, bool speaks);

}  // namespace shoal
