#include "collectives/expert_map.h"

#include <cstddef>

namespace shoal {

const ExpertReplica* ExpertMap::next(std::int32_t expert, int from) {
  const auto e = static_cast<std::size_t>(expert);
  if (e >= replicas.size() || replicas[e].empty()) return nullptr;
  const auto& all = replicas[e];
  if (all.size() == 1) return all.data();
  const auto point = static_cast<double>((turn[e]++ + static_cast<std::uint32_t>(from)) * 0x9E3779B9u) / 4294967296.0;
  double edge = 0;
  for (const ExpertReplica& replica : all) {
    edge += static_cast<double>(replica.share);
    if (point < edge) return &replica;
  }
  return &all.back();
}

}  // namespace shoal
