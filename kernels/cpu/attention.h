#pragma once
#include <span>
#include <vector>

#include "kernels/cpu/products.h"
#include "kernels/rows.h"

namespace shoal::cpu {

/// Heads that read the same keys and values, and where these lie in a cache row. MLA has one such group, GQA one for
/// each KV head.
struct HeadGroups {
  int groups, heads;  // heads in each group
  int key_dim, value_dim;
  int first_key, key_step;      // group g's keys begin at column first_key + g * key_step
  int first_value, value_step;  // and its values likewise
};

/// Backend::mla_attention and gqa_attention. Keeps its room between calls.
class Attention {
 public:
  /// q [tokens, groups * heads * key_dim], out [tokens, groups * heads * value_dim].
  void run(Team& team, Rows<const float> q, const HeadGroups& shape, float scale,
           std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out);

 private:
  /// What one thread does: some queries of one sequence, some heads of one group.
  struct Item {
    std::int64_t first_query;
    int queries, group, first_head, heads;
    std::int64_t longest;
  };
  struct Call;
  void divide(const Team& team, const HeadGroups& shape, std::span<const AttentionQuery> queries);
  void run_whole(Team& team, const Call& call);
  void run_split(Team& team, const Call& call);

  std::vector<Item> items_;
  std::vector<std::int64_t> first_part_;
  Scratch parts_;
};

}  // namespace shoal::cpu
