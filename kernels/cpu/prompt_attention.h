#pragma once
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/linear.h"

namespace shoal::cpu {

/// Backend::mla_prompt_attention: heads' keys and values are made of the latents, and kept while the queries pass, as
/// BF16 on CPUs with dot products of these, else as floats. Keeps its room between calls.
class PromptAttention {
 public:
  /// Bytes that keys and values of some heads take together at most, unless one alone takes more.
  explicit PromptAttention(std::int64_t most_block_bytes = 64 << 20) : most_block_bytes_(most_block_bytes) {}

  /// Whether it is for such a shape, and activations that may be rounded.
  static bool takes(const Team& team, const MlaShape& shape, const MlaUp& up);

  void run(Team& team, Linear& linear, Rows<const float> q, const MlaShape& shape, const MlaUp& up, float scale,
           std::span<const AttentionQuery> queries, const KvLayer& cache, Rows<float> out);

 private:
  struct Call;
  void turn_keys(Team& team, Linear& linear, const Call& call);
  void expand(Team& team, Linear& linear, const Call& call, std::int64_t first_head, std::int64_t heads);
  void attend(Team& team, const Call& call, std::int64_t first_head, std::int64_t heads);

  std::int64_t most_block_bytes_;
  std::vector<Matrix> key_up_;       // [heads] of [qk_nope_head_dim, kv_lora_rank], BF16
  std::vector<float> unit_vectors_;  // [qk_nope_head_dim, qk_nope_head_dim]
  std::vector<LinearJob> jobs_;
  Scratch latents_, expanded_, blocks_;
};

}  // namespace shoal::cpu
