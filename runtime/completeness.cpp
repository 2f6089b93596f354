#include "runtime/completeness.h"

#include <fmt/format.h>

#include <set>
#include <string_view>

#include "runtime/integer_weight.h"

namespace shoal {

Completeness compare(const Checkpoint& checkpoint, const std::vector<ExpectedTensor>& expected) {
  Completeness result;
  // A layer is there when any tensor it may hold is.
  std::set<int> stored_mtp_layers;
  for (const ExpectedTensor& e : expected) {
    if (e.part == Part::mtp && checkpoint.find(e.name)) stored_mtp_layers.insert(e.layer);
  }
  result.mtp_layers = static_cast<int>(stored_mtp_layers.size());

  const auto needed = [&](const ExpectedTensor& e) {
    switch (e.need) {
      case Need::always:
        return true;
      case Need::with_mtp_layer:
        return stored_mtp_layers.contains(e.layer);
      case Need::never:
        return false;
      case Need::unless_split: {
        constexpr std::string_view whole = "kv_b_proj";
        const auto half = [&](const char* name) {
          return checkpoint.find(std::string(e.name).replace(e.name.find(whole), whole.size(), name)) != nullptr;
        };
        return !half("k_b_proj") || !half("v_b_proj");
      }
      case Need::with_fp8_weight: {
        constexpr std::string_view suffix = "_scale_inv";
        const TensorInfo* weight = checkpoint.find(std::string_view(e.name).substr(0, e.name.size() - suffix.size()));
        return weight && weight->dtype == DType::f8_e4m3;
      }
    }
    return false;
  };

  std::set<std::string_view> known;
  for (const ExpectedTensor& e : expected) {
    known.insert(e.name);
    const TensorInfo* tensor = checkpoint.find(e.name);
    const auto parts = IntegerWeight::parts(checkpoint, e.name);
    for (const auto& part : parts) known.insert(checkpoint.find(part)->name);
    if (!tensor && !parts.empty()) continue;
    if (!tensor) {
      if (needed(e)) result.missing.push_back(e.name);
    } else if (tensor->shape != e.shape) {
      result.wrong.push_back(
          fmt::format("{}: [{}], not [{}]", e.name, fmt::join(tensor->shape, ", "), fmt::join(e.shape, ", ")));
    } else if (!tensor->readable() && parts.empty()) {
      result.wrong.push_back(fmt::format("{}: type {}", e.name, tensor->type));
    }
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (!known.contains(name)) result.unexpected.push_back(name);
  }
  return result;
}

}  // namespace shoal
