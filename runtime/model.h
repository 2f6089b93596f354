#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/dispatch_plan.h"
#include "kernels/backend.h"
#include "planner/model_config.h"
#include "planner/placement.h"
#include "runtime/kv_cache.h"
#include "runtime/weights.h"

namespace shoal {

/// The tokens one rank computes in a step, of any number of sequences, side by side.
struct TokenBatch {
  std::vector<std::int32_t> ids;        // [tokens]
  std::vector<std::int32_t> positions;  // [tokens]
  std::vector<std::int64_t> slots;      // [tokens] cache row of each token
  std::vector<AttentionQuery> queries;  // [tokens]
  std::int64_t most_tokens = 0;         // of the rank that has most in this step, the same on all; 0: not known
  std::int64_t size() const { return static_cast<std::int64_t>(ids.size()); }
};

/// The layers of one rank's share of a model, for both families: MLA with experts, GQA with dense blocks. Every rank
/// calls forward() once a step, with no tokens too, since each layer's exchange needs all ranks.
///
/// A layer, as in the papers:   x += attention(norm(x));   x += ffn(norm(x))
/// where ffn of an MoE layer is router -> dispatch -> all-to-all -> experts -> all-to-all -> combine, plus the shared
/// expert, computed while the tokens travel.
class Model {
 public:
  /// Where it throws, `weights` are as they were.
  Model(const ModelConfig& config, ModelWeights&& weights, const Placement& placement, Backend& backend,
        Communicator& comm, KvCache& cache, bool bf16_wire, Answers answers = Answers::summed);
  ~Model();

  /// Moves the experts of a layer to where `experts` says, between two forward()s. Every rank calls it with the same.
  void place_experts(int layer, const LayerPlacement& experts);

  /// Runs all layers. Returns the final hidden states [tokens, hidden], before the last norm, in the device's memory;
  /// valid until the next call.
  Rows<const float> forward(const TokenBatch& batch);

  /// Logits [rows.size(), vocab], in host memory, of these rows of forward()'s result; valid until the next call. Under
  /// tensor parallelism every rank must call it with the same rows.
  Rows<const float> logits(std::span<const std::int64_t> rows);

  /// Whether tokens can be drawn where the logits are made (not on CPUs, nor under tensor parallelism).
  bool can_sample() const;
  /// There: draws a token from the logits of each of these rows without bringing them to the host; -1 where no logit is
  /// a finite number.
  void sample(std::span<const std::int64_t> rows, std::span<const Draw> draws, std::span<std::int32_t> tokens);

  bool has_mtp() const;
  /// Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2), for guesses one token further: row i of
  /// `batch` has the position of row rows[i] of the last forward(), and the id of the token that *follows* it. Every
  /// rank calls it, with no tokens too.
  void forward_mtp(const TokenBatch& batch, std::span<const std::int64_t> rows);
  /// Logits of the tokens behind those that follow, of these rows of forward_mtp()'s batch; valid until the next call.
  Rows<const float> mtp_logits(std::span<const std::int64_t> rows);
  void mtp_sample(std::span<const std::int64_t> rows, std::span<const Draw> draws, std::span<std::int32_t> tokens);

  struct Counters {
    /// [MoE layers, n_routed_experts] of the last forward, from this rank; the MTP layer, if there is one, is the last.
    std::vector<std::uint32_t> expert_tokens;
    /// [MoE layers] of the last forward: how often this rank's experts were gone through, for all ranks' tokens.
    std::vector<std::uint32_t> expert_work;
    double exchange_us = 0;  // that the host waited for other ranks in the last forward
  };
  /// Waits for the last forward.
  const Counters& counters() const;
  std::int64_t vocab_size() const;
  std::uint64_t weight_bytes() const;
  const ModelWeights& weights() const;
  /// Gives its weights back; the model is of no use afterwards.
  ModelWeights take_weights();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace shoal
