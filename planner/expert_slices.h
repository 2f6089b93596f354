#pragma once
#include <string>

#include "planner/model_config.h"
#include "planner/precision.h"

namespace shoal {

/// How many ranks the experts can be sliced over: each gets a panel of 16 rows at least and, of types with a scale for
/// some columns of a row, a whole block, for what is cut finer is loaded as FP32. 0: there are no experts.
int most_slices(const ModelConfig& config, const Precision& precision);

/// The largest slice over the mean one: whole blocks do not always divide evenly. 1 without experts.
double largest_slice(const ModelConfig& config, const Precision& precision, int ranks);

/// Why experts cannot be sliced over `ranks`, as the end of a sentence; empty where they can.
std::string why_not_sliced(const ModelConfig& config, const Precision& precision, int ranks);

}  // namespace shoal
