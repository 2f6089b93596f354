#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "planner/expert_placement.h"
#include "planner/model_config.h"

namespace shoal {

/// Rows of a Matrix that lie together (kernels/matrix.h).
constexpr int panel_rows = 16;

/// A range of items: rows, heads, experts.
struct Slice {
  std::int64_t first = 0;
  std::int64_t count = 0;
};

/// Part `part` of `total` items cut into `parts` contiguous parts whose sizes differ by at most one `unit`; all cuts
/// but the end lie at multiples of `unit`. Parts may be empty.
Slice slice_of(std::int64_t total, int parts, int part, std::int64_t unit = 1);
/// Where the inner dimension of a feed-forward block, `total` wide, may be cut for `parts` ranks: at whole blocks of
/// its weights (`block` columns share a scale), so that slices stay quantized, unless some rank would get none; then,
/// and for plain weights, at whole panels of a Matrix.
std::int64_t cut_unit(std::int64_t total, int parts, std::int64_t block);

/// The heads of one rank under tensor parallelism. Ranks never share a query head; where there are more ranks than KV
/// heads, several ranks hold a copy of the same KV head and share out its query heads. So on every rank each KV head
/// serves the same number of its query heads.
struct HeadSlice {
  Slice heads;
  Slice kv_heads;
};
HeadSlice head_slice(int num_attention_heads, int num_key_value_heads, int ranks, int rank);

/// Ranks that share the dense parts, as they are served: all of a dense model's; each has those of a model with experts
/// for itself.
int served_tensor_parallel(int n_routed_experts, int ranks);

/// Which rank holds what. Models with experts: attention is data-parallel (a sequence lives on one rank, dense weights
/// on all), routed experts are spread over all ranks, or each of them is cut into slices that all ranks hold one of,
/// which balances the ranks whatever the router does and lets all of them read weights for a single token. Dense
/// models: every matrix is split over all ranks.
struct Placement {
  int ranks = 1;
  bool tensor_parallel = false;
  bool sliced_experts = false;          // then every expert is on every rank, with equal shares
  std::vector<LayerPlacement> experts;  // [layers], empty for layers without experts

  /// The experts of a layer that have a replica on `rank`, ascending.
  std::vector<std::int32_t> experts_on(int layer, int rank) const;
  /// Whether any expert has more than one whole replica.
  bool has_replicas() const;
};

/// Experts in contiguous runs of equal length (one more on the first ranks where it does not divide), so that a routing
/// group stays together.
Placement place_evenly(const ModelConfig& config, int ranks);

/// A slice of every expert on every rank.
Placement place_slices(const ModelConfig& config, int ranks);

/// The placement when of its ranks only `left` (ascending) are there, numbered anew from 0. Whole experts stay where
/// they are; of those that have no rank any more, each goes to the rank with fewest of its layer. Slices, of experts or
/// of dense models, are cut anew for all.
Placement place_among(const ModelConfig& config, const Placement& before, std::span<const int> left);

/// The part of an expert's intermediate width that `rank` holds where experts are sliced: whole blocks (`block` columns
/// of the down projection share a scale) where there are enough.
Slice expert_slice(const ModelConfig& config, int ranks, int rank, std::int64_t block);

}  // namespace shoal
