#include "planner/placement.h"

#include <algorithm>

namespace shoal {

Slice slice_of(std::int64_t total, int parts, int part, std::int64_t unit) {
  const std::int64_t units = (total + unit - 1) / unit;
  const auto cut = [&](std::int64_t p) {
    const std::int64_t full = units / parts, longer = units % parts;
    return std::min(total, (full * p + std::min<std::int64_t>(p, longer)) * unit);
  };
  return {cut(part), cut(part + 1) - cut(part)};
}

std::int64_t cut_unit(std::int64_t total, int parts, std::int64_t block) {
  return block > panel_rows && total / block >= parts ? block : panel_rows;
}

HeadSlice head_slice(int num_attention_heads, int num_key_value_heads, int ranks, int rank) {
  const int heads_per_kv = num_attention_heads / num_key_value_heads;
  if (num_key_value_heads >= ranks) {
    const Slice kv = slice_of(num_key_value_heads, ranks, rank);
    return {{kv.first * heads_per_kv, kv.count * heads_per_kv}, kv};
  }
  // The ranks are shared out among the KV heads; those of one KV head share out its query heads.
  for (int kv = 0; kv < num_key_value_heads; ++kv) {
    const Slice group = slice_of(ranks, num_key_value_heads, kv);
    if (rank >= group.first + group.count) continue;
    const Slice heads = slice_of(heads_per_kv, static_cast<int>(group.count), rank - static_cast<int>(group.first));
    return {{kv * heads_per_kv + heads.first, heads.count}, {kv, heads.count > 0 ? 1 : 0}};
  }
  return {};
}

std::vector<std::int32_t> Placement::experts_on(int layer, int rank) const {
  const LayerPlacement& all = experts[static_cast<std::size_t>(layer)];
  std::vector<std::int32_t> mine;
  for (std::size_t e = 0; e < all.size(); ++e)
    if (std::ranges::any_of(all[e], [&](const Replica& r) { return r.rank == rank; }))
      mine.push_back(static_cast<std::int32_t>(e));
  return mine;
}

bool Placement::has_replicas() const {
  return !sliced_experts && std::ranges::any_of(experts, [](const LayerPlacement& layer) {
    return std::ranges::any_of(layer, [](const auto& replicas) { return replicas.size() > 1; });
  });
}

int served_tensor_parallel(int n_routed_experts, int ranks) { return n_routed_experts > 0 ? 1 : ranks; }

Placement place_evenly(const ModelConfig& config, int ranks) {
  Placement placement{
      .ranks = ranks, .tensor_parallel = served_tensor_parallel(config.n_routed_experts, ranks) > 1, .experts = {}};
  LayerPlacement even(static_cast<std::size_t>(config.n_routed_experts));
  for (int r = 0; r < ranks; ++r) {
    const Slice mine = slice_of(config.n_routed_experts, ranks, r);
    for (std::int64_t e = mine.first; e < mine.first + mine.count; ++e) even[static_cast<std::size_t>(e)] = {{r, 1}};
  }
  for (int layer = 0; layer < config.num_hidden_layers + config.num_nextn_predict_layers; ++layer)
    placement.experts.push_back(config.is_moe_layer(layer) ? even : LayerPlacement{});
  return placement;
}

Placement place_slices(const ModelConfig& config, int ranks) {
  Placement placement{.ranks = ranks, .sliced_experts = true, .experts = {}};
  std::vector<Replica> everywhere;
  for (int r = 0; r < ranks; ++r) everywhere.push_back({r, 1 / static_cast<float>(ranks)});
  const LayerPlacement all(static_cast<std::size_t>(config.n_routed_experts), everywhere);
  for (int layer = 0; layer < config.num_hidden_layers + config.num_nextn_predict_layers; ++layer)
    placement.experts.push_back(config.is_moe_layer(layer) ? all : LayerPlacement{});
  return placement;
}

namespace {

LayerPlacement layer_among(const LayerPlacement& before, std::span<const int> left) {
  LayerPlacement experts(before.size());
  std::vector<int> held(left.size());
  for (std::size_t e = 0; e < before.size(); ++e) {
    float share = 0;
    for (const Replica& r : before[e]) {
      const auto at = std::ranges::lower_bound(left, r.rank);
      if (at == left.end() || *at != r.rank) continue;
      const auto rank = at - left.begin();
      experts[e].push_back({static_cast<std::int32_t>(rank), r.share});
      ++held[static_cast<std::size_t>(rank)];
      share += r.share;
    }
    for (Replica& r : experts[e]) r.share = share > 0 ? r.share / share : 1 / static_cast<float>(experts[e].size());
  }
  for (auto& replicas : experts) {
    if (!replicas.empty()) continue;
    const auto fewest = std::ranges::min_element(held);
    replicas.push_back({static_cast<std::int32_t>(fewest - held.begin()), 1});
    ++*fewest;
  }
  return experts;
}

}  // namespace

Placement place_among(const ModelConfig& config, const Placement& before, std::span<const int> left) {
  const int ranks = static_cast<int>(left.size());
  if (before.sliced_experts) return place_slices(config, ranks);
  if (before.tensor_parallel) return place_evenly(config, ranks);
  Placement placement{.ranks = ranks, .experts = {}};
  for (const LayerPlacement& layer : before.experts) placement.experts.push_back(layer_among(layer, left));
  return placement;
}

Slice expert_slice(const ModelConfig& config, int ranks, int rank, std::int64_t block) {
  const std::int64_t width = config.moe_intermediate_size;
  return slice_of(width, ranks, rank, cut_unit(width, ranks, block));
}

}  // namespace shoal
