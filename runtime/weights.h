#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "collectives/expert_map.h"
#include "kernels/backend.h"
#include "planner/model_config.h"
#include "planner/placement.h"
#include "runtime/checkpoint.h"

namespace shoal {

/// Multi-head latent attention, in the form the absorbed kernels use: kv_b_proj is split by head, its key half
/// transposed.
struct MlaWeights {
  Matrix q_proj;    // [heads * qk_head_dim, hidden], without q_lora_rank
  Matrix q_a_proj;  // [q_lora_rank, hidden]
  std::vector<float> q_a_bias, q_a_norm;
  Matrix q_b_proj;   // [heads * qk_head_dim, q_lora_rank]
  Matrix kv_a_proj;  // [kv_lora_rank + qk_rope_head_dim, hidden]
  std::vector<float> kv_a_bias, kv_a_norm;
  std::vector<Matrix> k_up;  // [heads] of [kv_lora_rank, qk_nope_head_dim]
  std::vector<Matrix> v_up;  // [heads] of [v_head_dim, kv_lora_rank]
  Matrix o_proj;             // [hidden, heads * v_head_dim]
  std::vector<float> o_bias;
};

/// Grouped-query attention; under tensor parallelism the rank's own heads only.
struct GqaWeights {
  Matrix q_proj, k_proj, v_proj;  // [heads * head_dim, hidden], [kv_heads * head_dim, hidden] twice
  std::vector<float> q_bias, k_bias, v_bias;
  std::vector<float> q_norm, k_norm;  // [head_dim], of all heads, or empty
  Matrix o_proj;                      // [hidden, heads * head_dim]
  std::vector<float> o_bias;          // on rank 0 only: the ranks' outputs are added
};

struct MoeWeights {
  Matrix router;                  // [n_routed_experts, hidden], FP32: routing is discrete, so it is not approximated
  std::vector<float> score_bias;  // e_score_correction_bias, or empty
  ExpertMap map;
  std::vector<FeedForward> experts;  // this rank's, in ascending order of their global ids
  FeedForward shared;                // empty if the model has none
};

struct LayerWeights {
  std::vector<float> attention_norm, ffn_norm;
  MlaWeights mla;
  GqaWeights gqa;
  FeedForward dense;  // layers without experts
  MoeWeights moe;
};

/// The layer that predicts one token further (arXiv 2412.19437, section 2.2): embedding and head are the model's own.
struct MtpWeights {
  std::vector<float> embedding_norm, hidden_norm;  // `enorm`, `hnorm`
  Matrix projection;                               // `eh_proj` [hidden, 2 hidden], of embedding and hidden state
  LayerWeights layer;
  std::vector<float> head_norm;  // `shared_head.norm`
};

/// One rank's share of a model.
struct ModelWeights {
  Matrix embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::optional<MtpWeights> mtp;
  std::vector<float> final_norm;
  Matrix lm_head;           // [this rank's part of vocab, hidden]; empty if tied and whole: the embedding serves
  Slice vocab;              // this rank's part
  std::uint64_t bytes = 0;  // all of the above

  const Matrix& head() const { return lm_head.empty() ? embedding : lm_head; }
};

struct LoadOptions {
  int threads = 2;            // that read and pack at the same time
  bool progress = false;      // draw a progress bar on stderr
  bool mtp = false;           // the MTP layer too; Error when there is none
  Backend* device = nullptr;  // where each matrix and vector is placed as soon as it was read
};

/// Reads and packs what `rank` holds under `placement`, and nothing else. Memory: the share itself and a few MB of
/// staging a thread. Error names file and tensor.
ModelWeights load_weights(const ModelConfig& config, const Checkpoint& checkpoint, const Placement& placement, int rank,
                          const LoadOptions& options);

/// Gives `rank` the experts that `placement` puts there: those that `weights` have, as what was `rank_before` until
/// now, stay, and the others are read. Nothing but whole experts may differ between the two placements. A layer without
/// any (see move_experts) is read again. Errors as load_weights'; `weights` are then of no use.
void reload_experts(ModelWeights& weights, int rank_before, const ModelConfig& config, const Checkpoint& checkpoint,
                    const Placement& placement, int rank, const LoadOptions& options);

}  // namespace shoal
