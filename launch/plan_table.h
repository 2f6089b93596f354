#pragma once
#include <string>
#include <vector>

namespace shoal {

/// The table that the field shares: for each model and precision, memory by context and concurrent sequences, and the
/// smallest bundled cluster that holds it. Empty lists stand for all cards, and for the precisions usual for each.
std::string plan_table(const std::vector<std::string>& models, const std::vector<std::string>& precisions);

}  // namespace shoal
