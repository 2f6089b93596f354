#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/kv_type.h"
#include "planner/cluster.h"
#include "planner/placement.h"
#include "planner/precision.h"

namespace shoal {

std::optional<KvType> find_kv_type(std::string_view name);
KvType kv_type_from(const std::string& name);  // Error (wrong usage) lists the types

constexpr int kv_page_tokens = 16;  // of a page of the KV cache
constexpr int logit_rows = 32;      // logits are made for so many rows at a time

/// Tokens of one rank in a step, where nobody says: GPUs multiply hundreds of rows in the time that reading weights
/// takes, CPUs tens.
constexpr int default_step_tokens(bool gpu) { return gpu ? 2048 : 512; }
/// Of these, tokens of prompts while any answer is being generated.
constexpr int default_prefill_tokens(bool gpu) { return gpu ? 512 : 256; }

/// What is asked of the machines.
struct Workload {
  int context = 4096;   // tokens of a sequence, prompt and answer
  int concurrency = 1;  // sequences at once, over all ranks
  KvType kv = KvType::bf16;
  int max_batched_tokens = 512;  // of one rank in a step
  bool bf16_rows = true;         // type of exchanged rows, and of a CPU's activations (--compute); else FP32
  bool mtp = false;              // the model's MTP layer guesses tokens ahead
};

/// How the dense parts are cut. Ranks of a tensor-parallel group hold 1/n of every dense matrix and share their
/// sequences; groups are data-parallel. Dense models are one group (as serve runs them); models with experts have
/// groups of one where that fits, and experts spread over all ranks either way.
struct Layout {
  int ranks = 1;
  int tensor_parallel = 1;
  bool replicas = false;        // experts have replicas, or move: each answers to a token by itself (dispatch_plan.h)
  bool sliced_experts = false;  // every rank has a slice of every expert (placement.h)
};

/// Bytes of one rank.
struct RankMemory {
  double weights = 0;
  double kv = 0;
  double activations = 0;
  double exchange = 0;
  double reserve = 0;    // the program itself, libraries, what the allocator rounds up
  double companion = 0;  // of this, on the rank's companion GPU
  double total() const { return weights + kv + activations + exchange + reserve; }
};

/// The weights of a model as ranks hold them: matrices in panels of 16 rows on a CPU (kernels/matrix.h), kv_b_proj
/// split by head (in F32 where it was in blocks along a row), router and vectors F32.
class HeldWeights {
 public:
  /// `mtp`: the MTP layer too.
  HeldWeights(const ModelConfig& config, const Precision& precision, Device::Kind kind, bool mtp = false);

  /// All but routed experts, on `rank` of a tensor-parallel group.
  double dense_bytes(int tensor_parallel, int rank) const;
  /// Of one routed expert. The MTP layer is the one behind the others.
  double expert_bytes(int layer) const { return expert_[static_cast<std::size_t>(layer)]; }
  /// The part of an expert's width that a rank has where experts are sliced, and bytes of that part.
  double slice_part(int ranks, int rank) const;
  double slice_bytes(int layer, int ranks, int rank) const;
  int layers() const { return static_cast<int>(expert_.size()); }
  /// Whether feed-forward blocks are multiplied as bytes.
  bool quantized() const { return quantized_; }

 private:
  struct Piece {
    const WeightType* type;
    std::int64_t rows, cols;
    enum class Cut { none, heads, kv_heads, head_cols, ffn_rows, ffn_cols, vocab } cut;
  };
  double bytes_of(const Piece& piece, std::int64_t rows, std::int64_t cols) const;
  /// How some of a matrix's columns are held: in floats where those that share a scale are all over it (runtime's
  /// IntegerWeight::packed).
  const WeightType* cut_along_rows(const WeightType* type) const;

  const ModelConfig config_;
  const Device::Kind kind_;
  std::vector<Piece> dense_;
  std::vector<double> expert_;         // [layers]
  std::vector<double> expert_if_cut_;  // [layers] what slices of an expert take beyond their part of it
  bool quantized_ = false;
  int expert_block_ = 1;  // columns of routed experts' down projections that share a scale, at most
};

/// Bytes of KV cache per token and layer stack of the whole model.
double kv_bytes_per_token(const ModelConfig& config, KvType type);

/// Sequences of the workload that live on `rank`: they are dealt out to the tensor-parallel groups.
int sequences_on(const Workload& workload, const Layout& layout, int rank);

/// What `rank` holds when every rank has its share of the sequences. `held_experts`: [weights.layers()] replicas on
/// this rank.
RankMemory rank_memory(const ModelConfig& config, const HeldWeights& weights, const Workload& workload,
                       const Layout& layout, const Cluster& cluster, int rank, std::span<const int> held_experts);

}  // namespace shoal
