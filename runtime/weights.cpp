#include "runtime/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "runtime/expert_moves.h"
#include "runtime/progress.h"
#include "runtime/tensor_loader.h"

namespace shoal {
namespace {

/// One layer's loading: the names under its prefix, and what this rank holds of it.
class LayerLoader {
 public:
  LayerLoader(const ModelConfig& config, const Placement& placement, int rank, int layer, TensorLoader& loader)
      : config_(config),
        placement_(placement),
        rank_(rank),
        layer_(layer),
        loader_(loader),
        prefix_(fmt::format("model.layers.{}.", layer)) {}

  void load_mtp(MtpWeights& to) {
    const std::int64_t hidden = config_.hidden_size;
    if (config_.num_nextn_predict_layers < 1 || !loader_.has(prefix_ + "eh_proj.weight"))
      throw Error("this model has no MTP layer to guess tokens with (" + prefix_ + "eh_proj.weight is not there)",
                  ExitCode::usage);
    loader_.vector(to.embedding_norm, prefix_ + "enorm.weight", hidden);
    loader_.vector(to.hidden_norm, prefix_ + "hnorm.weight", hidden);
    loader_.matrix(to.projection, prefix_ + "eh_proj.weight", hidden, 2 * hidden);
    loader_.vector(to.head_norm, prefix_ + "shared_head.norm.weight", hidden);
    load(to.layer);
  }

  /// As reload_experts() says, of this layer.
  void reload(MoeWeights& to, int rank_before) {
    std::vector<FeedForward> held = std::exchange(to.experts, {});
    const auto mine = placement_.experts_on(layer_, rank_);
    to.experts.resize(mine.size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const auto& replicas = to.map.replicas[static_cast<std::size_t>(mine[i])];
      const auto here = std::ranges::find(replicas, rank_before, &ExpertReplica::rank);
      if (held.empty() || here == replicas.end())
        expert(to.experts[i], mine[i]);
      else
        to.experts[i] = std::move(held[static_cast<std::size_t>(here->local)]);
    }
    to.map = expert_map(placement_.experts[static_cast<std::size_t>(layer_)]);
  }

  void load(LayerWeights& to) {
    loader_.vector(to.attention_norm, prefix_ + "input_layernorm.weight", config_.hidden_size);
    loader_.vector(to.ffn_norm, prefix_ + "post_attention_layernorm.weight", config_.hidden_size);
    if (config_.is_mla())
      mla(to.mla);
    else
      gqa(to.gqa);
    if (config_.is_moe_layer(layer_))
      moe(to.moe);
    else
      feed_forward(to.dense, prefix_ + "mlp.", config_.intermediate_size, placement_.tensor_parallel);
  }

 private:
  void mla(MlaWeights& to) {
    const std::string p = prefix_ + "self_attn.";
    const std::int64_t hidden = config_.hidden_size, heads = config_.num_attention_heads;
    const std::int64_t q_rows = heads * config_.qk_head_dim();
    const std::int64_t kv_rows = config_.kv_lora_rank + config_.qk_rope_head_dim;
    if (config_.q_lora_rank == 0) {
      loader_.matrix(to.q_proj, p + "q_proj.weight", q_rows, hidden);
    } else {
      loader_.matrix(to.q_a_proj, p + "q_a_proj.weight", config_.q_lora_rank, hidden);
      loader_.vector(to.q_a_norm, p + "q_a_layernorm.weight", config_.q_lora_rank);
      loader_.matrix(to.q_b_proj, p + "q_b_proj.weight", q_rows, config_.q_lora_rank);
      if (config_.attention_bias) loader_.vector(to.q_a_bias, p + "q_a_proj.bias", config_.q_lora_rank);
    }
    loader_.matrix(to.kv_a_proj, p + "kv_a_proj_with_mqa.weight", kv_rows, hidden);
    loader_.vector(to.kv_a_norm, p + "kv_a_layernorm.weight", config_.kv_lora_rank);
    loader_.kv_b(to.k_up, to.v_up, p + "kv_b_proj.weight", static_cast<int>(heads), config_.qk_nope_head_dim,
                 config_.v_head_dim, config_.kv_lora_rank);
    loader_.matrix(to.o_proj, p + "o_proj.weight", hidden, heads * config_.v_head_dim);
    if (config_.attention_bias) {
      loader_.vector(to.kv_a_bias, p + "kv_a_proj_with_mqa.bias", kv_rows);
      loader_.vector(to.o_bias, p + "o_proj.bias", hidden);
    }
  }

  void gqa(GqaWeights& to) {
    const std::string p = prefix_ + "self_attn.";
    const std::int64_t hidden = config_.hidden_size, dim = config_.head_dim;
    const std::int64_t q_rows = config_.num_attention_heads * dim, kv_rows = config_.num_key_value_heads * dim;
    const auto [heads, kv_heads] =
        placement_.tensor_parallel
            ? head_slice(config_.num_attention_heads, config_.num_key_value_heads, placement_.ranks, rank_)
            : HeadSlice{{0, config_.num_attention_heads}, {0, config_.num_key_value_heads}};
    const Slice q{heads.first * dim, heads.count * dim}, kv{kv_heads.first * dim, kv_heads.count * dim};
    loader_.matrix(to.q_proj, p + "q_proj.weight", q_rows, hidden, q);
    loader_.matrix(to.k_proj, p + "k_proj.weight", kv_rows, hidden, kv);
    loader_.matrix(to.v_proj, p + "v_proj.weight", kv_rows, hidden, kv);
    loader_.matrix(to.o_proj, p + "o_proj.weight", hidden, q_rows, {}, q);
    if (config_.attention_bias) {
      loader_.vector(to.q_bias, p + "q_proj.bias", q_rows, q);
      loader_.vector(to.k_bias, p + "k_proj.bias", kv_rows, kv);
      loader_.vector(to.v_bias, p + "v_proj.bias", kv_rows, kv);
    }
    if (config_.qk_norm) {
      loader_.vector(to.q_norm, p + "q_norm.weight", dim);
      loader_.vector(to.k_norm, p + "k_norm.weight", dim);
    }
    if (config_.attention_output_bias && rank_ == 0) loader_.vector(to.o_bias, p + "o_proj.bias", hidden);
  }

  /// Cut at whole blocks of the down projection.
  Slice slice_of_ffn(const std::string& p, std::int64_t intermediate) const {
    const std::int64_t block = loader_.block_columns(p + "down_proj.weight", config_.hidden_size, intermediate);
    return slice_of(intermediate, placement_.ranks, rank_, cut_unit(intermediate, placement_.ranks, block));
  }

  void feed_forward(FeedForward& to, const std::string& p, std::int64_t intermediate, bool sliced) {
    const Slice mine = sliced ? slice_of_ffn(p, intermediate) : Slice{0, intermediate};
    loader_.matrix(to.gate, p + "gate_proj.weight", intermediate, config_.hidden_size, mine);
    loader_.matrix(to.up, p + "up_proj.weight", intermediate, config_.hidden_size, mine);
    loader_.matrix(to.down, p + "down_proj.weight", config_.hidden_size, intermediate, {}, mine);
  }

  void expert(FeedForward& to, std::int32_t id) {
    feed_forward(to, fmt::format("{}mlp.experts.{}.", prefix_, id), config_.moe_intermediate_size,
                 placement_.sliced_experts);
  }

  void moe(MoeWeights& to) {
    const std::string p = prefix_ + "mlp.";
    loader_.matrix_f32(to.router, p + "gate.weight", config_.n_routed_experts, config_.hidden_size);
    if (const std::string bias = p + "gate.e_score_correction_bias"; loader_.has(bias))
      loader_.vector(to.score_bias, bias, config_.n_routed_experts);
    to.map = placement_.sliced_experts ? slice_map(config_.n_routed_experts, placement_.ranks)
                                       : expert_map(placement_.experts[static_cast<std::size_t>(layer_)]);
    const auto mine = placement_.experts_on(layer_, rank_);
    to.experts.resize(mine.size());
    for (std::size_t i = 0; i < mine.size(); ++i) expert(to.experts[i], mine[i]);
    if (config_.n_shared_experts > 0)
      feed_forward(to.shared, p + "shared_experts.",
                   static_cast<std::int64_t>(config_.moe_intermediate_size) * config_.n_shared_experts,
                   placement_.tensor_parallel);
  }

  const ModelConfig& config_;
  const Placement& placement_;
  const int rank_, layer_;
  TensorLoader& loader_;
  const std::string prefix_;
};

void read_all(TensorLoader& loader, const char* what, const LoadOptions& options) {
  Progress progress(what, loader.bytes_to_read(), options.progress);
  loader.run(options.threads, [&](std::uint64_t bytes) { progress.add(bytes); });
}

}  // namespace

ModelWeights load_weights(const ModelConfig& config, const Checkpoint& checkpoint, const Placement& placement, int rank,
                          const LoadOptions& options) {
  TensorLoader loader(checkpoint, config.quantization.value_or(WeightQuantization{}), options.device);
  ModelWeights weights;
  weights.vocab = placement.tensor_parallel ? slice_of(config.vocab_size, placement.ranks, rank, Matrix::kPanel)
                                            : Slice{0, config.vocab_size};
  loader.matrix(weights.embedding, "model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  weights.layers.resize(static_cast<std::size_t>(config.num_hidden_layers));
  for (int layer = 0; layer < config.num_hidden_layers; ++layer)
    LayerLoader(config, placement, rank, layer, loader).load(weights.layers[static_cast<std::size_t>(layer)]);
  if (options.mtp)
    LayerLoader(config, placement, rank, config.num_hidden_layers, loader).load_mtp(weights.mtp.emplace());
  loader.vector(weights.final_norm, "model.norm.weight", config.hidden_size);
  if (!config.tie_word_embeddings || placement.tensor_parallel)
    loader.matrix(weights.lm_head, config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight",
                  config.vocab_size, config.hidden_size, weights.vocab);

  weights.bytes = loader.bytes_to_read();
  read_all(loader, "loading weights", options);
  return weights;
}

void reload_experts(ModelWeights& weights, int rank_before, const ModelConfig& config, const Checkpoint& checkpoint,
                    const Placement& placement, int rank, const LoadOptions& options) {
  TensorLoader loader(checkpoint, config.quantization.value_or(WeightQuantization{}), options.device);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer)
    if (config.is_moe_layer(layer))
      LayerLoader(config, placement, rank, layer, loader)
          .reload(weights.layers[static_cast<std::size_t>(layer)].moe, rank_before);
  if (weights.mtp && config.is_moe_layer(config.num_hidden_layers))
    LayerLoader(config, placement, rank, config.num_hidden_layers, loader).reload(weights.mtp->layer.moe, rank_before);
  weights.bytes += loader.bytes_to_read();
  read_all(loader, "loading lost experts", options);
}

}  // namespace shoal
