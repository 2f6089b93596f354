#include "planner/expert_slices.h"

#include <fmt/format.h>

#include <algorithm>

#include "planner/placement.h"

namespace shoal {
namespace {

/// Types of the experts' down projections, which are cut along their rows.
void for_each_down_type(const ModelConfig& config, const Precision& precision, const auto& use) {
  for (const ExpectedTensor& t : expected_tensors(config))
    if (t.required() && t.part == Part::routed_experts && t.name.ends_with("down_proj.weight"))
      use(precision.type_of(config, t));
}

/// Columns of a slice that stay together.
int unit_of(const ModelConfig& config, const Precision& precision) {
  int unit = panel_rows;
  for_each_down_type(config, precision, [&](const WeightType& type) {
    if (type.block_rows == 1) unit = std::max(unit, type.block_cols);  // FP8 gets finer scales where it is cut
  });
  return unit;
}

int slices_of(const ModelConfig& config, int unit) {
  const int width = config.moe_intermediate_size;
  return unit > panel_rows ? std::max(1, width / unit) : (width + panel_rows - 1) / panel_rows;
}

}  // namespace

int most_slices(const ModelConfig& config, const Precision& precision) {
  return config.n_routed_experts == 0 ? 0 : slices_of(config, unit_of(config, precision));
}

double largest_slice(const ModelConfig& config, const Precision& precision, int ranks) {
  if (config.n_routed_experts == 0) return 1;
  int block = 1;
  for_each_down_type(config, precision, [&](const WeightType& type) { block = std::max(block, type.block_cols); });
  const auto first = static_cast<double>(expert_slice(config, ranks, 0, block).count);  // no other is larger
  return first * ranks / config.moe_intermediate_size;
}

std::string why_not_sliced(const ModelConfig& config, const Precision& precision, int ranks) {
  if (config.n_routed_experts == 0) return "the model has no experts to slice";
  const int unit = unit_of(config, precision), most = slices_of(config, unit);
  if (ranks <= most) return "";
  return fmt::format("experts are {} wide, in {} of {}, which makes slices for up to {} ranks, and there are {}",
                     config.moe_intermediate_size, unit > panel_rows ? "blocks" : "panels", unit, most, ranks);
}

}  // namespace shoal
