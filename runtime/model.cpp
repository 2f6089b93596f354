#include "runtime/model.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "collectives/agreement.h"
#include "kernels/device_moe.h"
#include "runtime/expert_moves.h"
#include "runtime/host_token_exchange.h"
#include "runtime/query_ranges.h"

namespace shoal {
namespace {

/// Tokens of the rank that has most, from which on a layer's are exchanged in two halves where that overlaps: half of
/// R1's rows between two hosts of 8 GPUs then take 0.3 ms at 400 Gbit/s, some hundred launches and the host's planning
/// less. By reckoning, not measured.
constexpr std::int64_t kHalvesFrom = 1024;

/// transformers and DeepSeek's own code use this constant for the norms inside MLA, not rms_norm_eps.
constexpr float kLatentNormEps = 1e-6f;

/// The device's memory for rows of activations, which only ever grows.
class Scratch {
 public:
  explicit Scratch(Backend& backend) : backend_(backend) {}
  Rows<float> rows(std::int64_t tokens, std::int64_t width) {
    const auto need = static_cast<std::size_t>(tokens * width);
    if (floats_ < need) {
      floats_ = need + need / 4;
      if (memory_) backend_.finish();  // to free it waits as well, whatever for
      memory_ = nullptr;               // before there is more
      memory_ = backend_.allocate(floats_ * sizeof(float));
    }
    return {static_cast<float*>(memory_.get()), tokens, width};
  }

 private:
  Backend& backend_;
  std::shared_ptr<void> memory_;
  std::size_t floats_ = 0;
};

RouterShape router_shape(const ModelConfig& c) {
  RouterShape s{.n_experts = c.n_routed_experts, .top_k = c.num_experts_per_tok};
  s.scoring = c.scoring_func == "sigmoid" ? Scoring::sigmoid : Scoring::softmax;
  s.norm_topk_prob = c.norm_topk_prob;
  s.routed_scaling_factor = c.routed_scaling_factor;
  if (c.topk_method == "noaux_tc" || c.topk_method == "group_limited_greedy") {
    s.n_group = c.n_group;
    s.topk_group = c.topk_group;
    s.group_score = c.topk_method == "noaux_tc" ? GroupScore::best_two_sum : GroupScore::best;
  }
  return s;
}

class Stopwatch {
 public:
  double us() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

struct Model::State {
  const ModelConfig config;
  ModelWeights weights;
  const Placement placement;
  Backend& backend;
  Communicator& comm;
  KvCache& cache;
  const RopeFrequencies frequencies = rope_frequencies(config);
  const float scale = attention_scale(config);
  const RopePairing pairing = config.rope_interleave ? RopePairing::interleaved : RopePairing::halves;
  const RouterShape router = router_shape(config);
  GqaShape gqa_shape{};
  std::vector<std::size_t> vocab_counts;                  // [ranks] each rank's part of the LM head
  std::vector<std::unique_ptr<TokenExchange>> exchanges;  // one, or two that overlap
  int parts = 1;                                          // of a layer's tokens, each with its exchange, in this step
  std::int64_t slots = 0;                                 // of device_moe's layers in this step; 0: the host takes part
  std::vector<int> chosen_on_device;                      // layers with experts whose counters device_moe has
  Counters counters;

  Rows<float> x;        // the residual stream [tokens, hidden]
  Rows<float> guessed;  // the same of the MTP layer
  RopeAngles angles;
  Scratch x_memory{backend}, guessed_memory{backend}, joined{backend}, cos{backend}, sin{backend}, normed{backend},
      branch{backend}, q_a{backend}, q{backend}, q_latent{backend}, kv{backend}, k{backend}, v{backend}, o{backend},
      logit{backend}, picked{backend};
  HostRoom branch_room, logit_room;  // what the host reads or adds to
  std::vector<std::int32_t> expert;
  std::vector<std::int32_t> slice;  // of the experts, where they are sliced
  std::vector<float> slice_weight;
  std::vector<float> weight, host_cos, host_sin, gathered, local_logits;
  /// Null: the host takes part in each layer with experts. Goes before the memory above, which to free waits for work
  /// on the device that may wait for other ranks until this one is gone.
  std::unique_ptr<DeviceMoe> device_moe;

  State(const ModelConfig& c, ModelWeights&& w, const Placement& p, Backend& b, Communicator& cm, KvCache& kc,
        bool bf16_wire, Answers answers)
      : config(c), weights(std::move(w)), placement(p), backend(b), comm(cm), cache(kc) {
    if (config.n_routed_experts > 0) {
      const auto& as = config.quantization;
      const ExchangeShape shape{config.hidden_size, bf16_wire, answers,
                                as && as->method == "fp8" && as->block_rows == 128 && as->block_cols == 128};
      try {
        exchanges.push_back(backend.token_exchange(comm, shape));
        if (!exchanges[0]) exchanges[0] = make_host_token_exchange(backend, comm, shape);
        if (exchanges[0]->overlaps()) exchanges.push_back(backend.token_exchange(comm, shape));
        make_device_moe({shape, router, slices(), moe_layers()});
      } catch (...) {
        w = std::move(weights);
        throw;
      }
    }
    const HeadSlice mine =
        placement.tensor_parallel
            ? head_slice(config.num_attention_heads, config.num_key_value_heads, comm.size(), comm.rank())
            : HeadSlice{{0, config.num_attention_heads}, {0, config.num_key_value_heads}};
    gqa_shape = {static_cast<int>(mine.heads.count), static_cast<int>(mine.kv_heads.count), config.head_dim};
    for (int r = 0; r < comm.size(); ++r)
      vocab_counts.push_back(
          static_cast<std::size_t>(slice_of(config.vocab_size, comm.size(), r, Matrix::kPanel).count));
  }

  /// Of each expert: as many ranks hold a part of it.
  int slices() const { return placement.sliced_experts ? comm.size() : 1; }
  bool is_moe_layer(std::size_t layer) const { return config.is_moe_layer(static_cast<int>(layer)); }
  int moe_layers() const {
    int n = weights.mtp ? 1 : 0;
    for (std::size_t i = 0; i < weights.layers.size(); ++i) n += is_moe_layer(i);
    return n;
  }
  /// Where all ranks' back ends have it: there may be some with GPUs and some without.
  void make_device_moe(const DeviceMoeShape& shape) {
    if (!all_agree(comm, backend.has_device_moe(comm, shape))) return;
    device_moe = backend.device_moe(comm, shape);
    if (!device_moe) return;
    for (std::size_t i = 0; i < weights.layers.size(); ++i)
      if (is_moe_layer(i)) device_moe->placed(weights.layers[i].moe.map);
    if (weights.mtp) device_moe->placed(weights.mtp->layer.moe.map);
  }

  /// Angles as transformers computes them: position * inv_freq rounded to FP32, then cos and sin.
  void compute_angles(const TokenBatch& batch) {
    const auto pairs = static_cast<std::int64_t>(frequencies.inv_freq.size());
    host_cos.resize(static_cast<std::size_t>(batch.size() * pairs));
    host_sin.resize(host_cos.size());
    const Rows<float> c(host_cos.data(), batch.size(), pairs), s(host_sin.data(), batch.size(), pairs);
    for (std::int64_t t = 0; t < batch.size(); ++t)
      for (std::int64_t i = 0; i < pairs; ++i) {
        const float angle = static_cast<float>(batch.positions[static_cast<std::size_t>(t)]) *
                            frequencies.inv_freq[static_cast<std::size_t>(i)];
        c[t][i] = std::cos(angle) * frequencies.magnitude;
        s[t][i] = std::sin(angle) * frequencies.magnitude;
      }
    const Rows<float> on_device_cos = cos.rows(batch.size(), pairs), on_device_sin = sin.rows(batch.size(), pairs);
    backend.from_host(c, on_device_cos);
    backend.from_host(s, on_device_sin);
    angles = {on_device_cos, on_device_sin};
  }

  /// A layer's half begins: what the half before computed joins the stream, h is its norm, then products of h.
  struct Begin {
    Rows<const float> branch;
    Rows<float> stream;
    std::span<const float> norm;
    Rows<float> h;
  };
  void begin(const Begin& b, std::initializer_list<Projection> projections) {
    backend.norm_linears(b.branch, b.stream, b.norm, config.rms_norm_eps, b.h,
                         {projections.begin(), projections.size()});
  }

  /// out [tokens, hidden] = attention of the normed stream, its latents written to the cache first.
  void mla(const MlaWeights& w, const Begin& half, const TokenBatch& batch, const KvLayer& layer, Rows<float> out) {
    const std::int64_t tokens = out.rows, heads = config.num_attention_heads;
    const std::int64_t rank = config.kv_lora_rank, rope = config.qk_rope_head_dim, nope = config.qk_nope_head_dim;
    const std::int64_t head_dim = config.qk_head_dim(), latent_dim = rank + rope;

    const Rows<float> query = q.rows(tokens, heads * head_dim), latent = kv.rows(tokens, latent_dim);
    if (config.q_lora_rank > 0) {
      const Rows<float> compressed = q_a.rows(tokens, config.q_lora_rank);
      begin(half, {{&w.q_a_proj, w.q_a_bias, compressed}, {&w.kv_a_proj, w.kv_a_bias, latent}});
      const Projection up{&w.q_b_proj, {}, query};
      backend.norm_linears({}, compressed, w.q_a_norm, kLatentNormEps, compressed, {&up, 1});
    } else {
      begin(half, {{&w.q_proj, {}, query}, {&w.kv_a_proj, w.kv_a_bias, latent}});
    }
    backend.write_latent(latent, w.kv_a_norm, kLatentNormEps, angles, pairing, batch.slots, layer);

    const MlaShape shape{static_cast<int>(heads), static_cast<int>(rank), static_cast<int>(rope)};
    const MlaUp up{w.k_up, w.v_up};
    const Rows<float> values = v.rows(tokens, heads * config.v_head_dim);
    for (const QueryRange& range : query_ranges(batch.queries, backend.mla_prompt_from(shape, up, layer))) {
      const Rows<float> asking = query.slice(range.first, range.count), to = values.slice(range.first, range.count);
      const Rows<float> rotated = asking.columns(nope, asking.cols - nope);
      const RopeAngles at{angles.cos.slice(range.first, range.count), angles.sin.slice(range.first, range.count)};
      const auto queries = std::span(batch.queries)
                               .subspan(static_cast<std::size_t>(range.first), static_cast<std::size_t>(range.count));
      if (range.prompt) {
        backend.rope(rotated, static_cast<int>(heads), head_dim, at, pairing);
        backend.mla_prompt_attention(asking, shape, up, scale, queries, layer, to);
        continue;
      }
      // The query moves into latent space (absorption), its rotated part behind it.
      const Rows<float> absorbed = q_latent.rows(range.count, heads * latent_dim);
      backend.linear_per_head(asking, head_dim, w.k_up, absorbed, latent_dim);
      backend.rope_heads(rotated, head_dim, static_cast<int>(heads), at, pairing,
                         absorbed.columns(rank, absorbed.cols - rank), latent_dim);
      const Rows<float> attended = o.rows(range.count, heads * rank);
      backend.mla_attention(absorbed, shape, scale, queries, layer, attended);
      backend.linear_per_head(attended, rank, w.v_up, to, config.v_head_dim);
    }
    backend.linear(values, w.o_proj, w.o_bias, out);
  }

  /// Each head by itself: rows of heads, which lie side by side, are as many rows of one.
  void norm_heads(Rows<float> x, std::span<const float> weight) {
    const auto dim = std::ssize(weight);
    const Rows<float> heads(x.data, x.rows * x.cols / dim, dim);
    backend.rms_norm(heads, weight, config.rms_norm_eps, heads);
  }

  void gqa(const GqaWeights& w, const Begin& half, const TokenBatch& batch, const KvLayer& layer, Rows<float> out) {
    const std::int64_t tokens = out.rows, dim = config.head_dim;
    const std::int64_t heads = gqa_shape.heads, kv_heads = gqa_shape.kv_heads;
    if (heads == 0) {  // more ranks than heads: this one only helps with the dense blocks
      begin(half, {});
      return backend.fill_zero(out);
    }
    const Rows<float> query = q.rows(tokens, heads * dim), key = k.rows(tokens, kv_heads * dim),
                      value = v.rows(tokens, kv_heads * dim), attended = o.rows(tokens, heads * dim);
    begin(half, {{&w.q_proj, w.q_bias, query}, {&w.k_proj, w.k_bias, key}, {&w.v_proj, w.v_bias, value}});
    if (config.qk_norm) {
      norm_heads(query, w.q_norm);
      norm_heads(key, w.k_norm);
    }
    backend.rope(query, gqa_shape.heads, dim, angles, pairing);
    backend.rope(key, gqa_shape.kv_heads, dim, angles, pairing);
    backend.write_kv(key, batch.slots, 0, layer);
    backend.write_kv(value, batch.slots, static_cast<int>(kv_heads * dim), layer);
    backend.gqa_attention(query, gqa_shape, scale, batch.queries, layer, attended);
    backend.linear(attended, w.o_proj, w.o_bias, out);
  }

  void feed_forward(const FeedForward& ffn, Rows<const float> h, Rows<float> out) {
    if (ffn.empty()) return backend.fill_zero(out);
    backend.feed_forward(h, ffn, out);
  }

  Rows<float> scores(std::int64_t tokens) { return logit.rows(tokens, router.n_experts); }

  void begin_step(const TokenBatch& batch) {
    backend.begin_step(batch.slots, batch.queries, cache.page_tokens());
    slots = device_moe ? device_moe->begin_step(batch.size(), batch.most_tokens) : 0;
    parts = batch.most_tokens >= kHalvesFrom ? static_cast<int>(exchanges.size()) : 1;
  }
  void end_step() {
    if (slots > 0) device_moe->end_step();
  }
  void count_experts(int moe_layer, std::span<const std::int32_t> chosen) {
    for (const std::int32_t e : chosen)
      if (e >= 0) ++counters.expert_tokens[static_cast<std::size_t>(moe_layer * router.n_experts + e)];
  }
  void fetch_counters() {
    for (const int layer : chosen_on_device) {
      const DeviceMoe::Chosen chosen = device_moe->chosen(layer);
      count_experts(layer, chosen.expert);
      counters.expert_work[static_cast<std::size_t>(layer)] = static_cast<std::uint32_t>(chosen.work);
    }
    chosen_on_device.clear();
  }

  void moe_on_device(MoeWeights& w, int moe_layer, Rows<float> h, Rows<float> out) {
    device_moe->run({moe_layer, &w.map, w.score_bias, w.experts}, scores(h.rows), h, out,
                    [&] { feed_forward(w.shared, h, out); });
  }

  /// Where part i of a layer's rows begins.
  std::int64_t first_of(int i, std::int64_t rows) const { return rows * i / parts; }
  Rows<float> part(int i, Rows<float> of) const {
    const std::int64_t first = first_of(i, of.rows);
    return of.slice(first, first_of(i + 1, of.rows) - first);
  }
  TokenExchange& exchange(int i) { return *exchanges[static_cast<std::size_t>(i)]; }
  /// Sends part i of rows h to their experts.
  void dispatch(int i, Rows<float> h, ExpertMap& map) {
    const Rows<float> rows = part(i, h);
    const std::int64_t top_k = router.top_k, at = first_of(i, h.rows) * top_k;
    if (!placement.sliced_experts)
      return exchange(i).dispatch(rows, expert.data() + at, weight.data() + at, static_cast<int>(top_k), map);
    slice.clear();
    slice_weight.clear();
    for (std::int64_t entry = at; entry < at + rows.rows * top_k; ++entry)
      for (std::int32_t r = 0; r < slices(); ++r) {
        slice.push_back(expert[static_cast<std::size_t>(entry)] * slices() + r);
        slice_weight.push_back(weight[static_cast<std::size_t>(entry)]);
      }
    exchange(i).dispatch(rows, slice.data(), slice_weight.data(), static_cast<int>(top_k) * slices(), map);
  }

  /// Of rows h, whose scores() the router's product has computed. Where rows travel by themselves, those of one part do
  /// while the experts of the other are computed.
  void moe(MoeWeights& w, int moe_layer, Rows<float> h, Rows<float> out) {
    const std::int64_t tokens = h.rows, top_k = router.top_k;
    expert.resize(static_cast<std::size_t>(tokens * top_k));
    weight.resize(expert.size());
    backend.route(scores(tokens), w.score_bias, router, {expert.data(), tokens, top_k}, {weight.data(), tokens, top_k});
    count_experts(moe_layer, expert);

    for (int i = 0; i < parts; ++i) dispatch(i, h, w.map);
    feed_forward(w.shared, h, out);  // while the tokens travel
    std::array<const ExpertBatch*, 2> batch{};
    const Stopwatch waiting;
    for (int i = 0; i < parts; ++i) batch[static_cast<std::size_t>(i)] = &exchange(i).dispatched();
    counters.exchange_us += waiting.us();
    for (int i = 0; i < parts; ++i) {
      const ExpertBatch& work = *batch[static_cast<std::size_t>(i)];
      counters.expert_work[static_cast<std::size_t>(moe_layer)] += static_cast<std::uint32_t>(work.expert.size());
      exchange(i).arrived();
      backend.experts(work, w.experts);
      exchange(i).combine(part(i, out));
    }
    const Stopwatch returning;
    for (int i = 0; i < parts; ++i) exchange(i).combined(part(i, out));
    counters.exchange_us += returning.us();
  }

  /// Under tensor parallelism a block's output is the sum of the ranks' parts.
  void sum_over_ranks(Rows<float> out) {
    if (!placement.tensor_parallel || out.rows == 0) return;
    const Rows<float> mine = backend.to_host(out, branch_room);
    const Stopwatch waiting;
    comm.all_reduce_sum({mine.data, static_cast<std::size_t>(mine.rows * mine.cols)});
    counters.exchange_us += waiting.us();
    backend.from_host(mine, out);
  }

  /// A layer: what of it has not joined the residual stream [tokens, hidden] yet, to be passed on to the next one or to
  /// finish(); `before` comes from the one before.
  Rows<const float> run_layer(LayerWeights& layer, int index, int moe_layer, const TokenBatch& batch,
                              Rows<const float> before, Rows<float> stream) {
    const Rows<float> h = normed.rows(stream.rows, stream.cols), out = branch.rows(stream.rows, stream.cols);
    const Begin attention{before, stream, layer.attention_norm, h}, ffn{out, stream, layer.ffn_norm, h};
    const bool moe_layer_here = config.is_moe_layer(index), on_device = moe_layer_here && slots > 0;
    const auto attend = [&] {
      if (config.is_mla())
        mla(layer.mla, attention, batch, cache.layer(index), out);
      else
        gqa(layer.gqa, attention, batch, cache.layer(index), out);
    };
    const auto begin_ffn = [&] {
      if (moe_layer_here) return begin(ffn, {{&layer.moe.router, {}, scores(stream.rows)}});
      begin(ffn, {});
      feed_forward(layer.dense, h, out);
    };
    const auto moe_alone = [&] { moe_on_device(layer.moe, moe_layer, h, out); };
    if (placement.tensor_parallel) {  // the host is in between
      backend.repeat(2 * index, stream.rows, attend);
      sum_over_ranks(out);
      backend.repeat(2 * index + 1, stream.rows, begin_ffn);
    } else {
      const bool in_one = on_device && device_moe->repeats();
      // Other ranks' tokens may be all there is.
      backend.repeat(in_one ? slots << 16 | 2 * index : 2 * index, in_one ? slots : stream.rows, [&] {
        attend();
        begin_ffn();
        if (in_one) moe_alone();
      });
      if (on_device && !in_one) moe_alone();
    }
    if (on_device) chosen_on_device.push_back(moe_layer);
    if (moe_layer_here && !on_device) moe(layer.moe, moe_layer, h, out);
    sum_over_ranks(out);
    return out;
  }
  void finish(Rows<const float> branch_left, Rows<float> stream) { backend.add(branch_left, stream); }

  /// Rows of a residual stream, normed for the LM head.
  Rows<const float> head_input(Rows<const float> stream, std::span<const float> norm,
                               std::span<const std::int64_t> rows) {
    const Rows<float> hidden = picked.rows(static_cast<std::int64_t>(rows.size()), config.hidden_size);
    backend.gather_rows(stream, rows, hidden);
    backend.rms_norm(hidden, norm, config.rms_norm_eps, hidden);
    return hidden;
  }
  /// This rank's columns of the logits, where they are made.
  Rows<float> own_logits(Rows<const float> stream, std::span<const float> norm, std::span<const std::int64_t> rows) {
    const Rows<const float> hidden = head_input(stream, norm, rows);
    const Rows<float> out =
        logit.rows(hidden.rows, placement.tensor_parallel ? weights.vocab.count : config.vocab_size);
    if (out.cols > 0) backend.linear(hidden, weights.head(), {}, out);
    return out;
  }

  /// Logits [rows.size(), vocab] of rows of a residual stream.
  Rows<const float> logits(Rows<const float> stream, std::span<const float> norm, std::span<const std::int64_t> rows);
};

Model::Model(const ModelConfig& config, ModelWeights&& weights, const Placement& placement, Backend& backend,
             Communicator& comm, KvCache& cache, bool bf16_wire, Answers answers)
    : state_(std::make_unique<State>(config, std::move(weights), placement, backend, comm, cache, bf16_wire, answers)) {
}
Model::~Model() = default;

void Model::place_experts(int layer, const LayerPlacement& experts) {
  State& s = *state_;
  const bool trunk = layer >= 0 && layer < s.config.num_hidden_layers;
  const bool guessing = layer == s.config.num_hidden_layers && s.weights.mtp;
  if ((!trunk && !guessing) || !s.config.is_moe_layer(layer)) fail("layer {} has no experts that could move", layer);
  LayerWeights& of = trunk ? s.weights.layers[static_cast<std::size_t>(layer)] : s.weights.mtp->layer;
  move_experts(of.moe, experts, s.comm, s.backend);
  if (s.device_moe) s.device_moe->placed(of.moe.map);
}

Rows<const float> Model::forward(const TokenBatch& batch) {
  State& s = *state_;
  s.counters.exchange_us = 0;
  const auto moe_layers = static_cast<std::size_t>(s.moe_layers());
  s.counters.expert_tokens.assign(moe_layers * static_cast<std::size_t>(s.config.n_routed_experts), 0);
  s.counters.expert_work.assign(moe_layers, 0);
  s.chosen_on_device.clear();

  s.x = s.x_memory.rows(batch.size(), s.config.hidden_size);
  s.compute_angles(batch);
  s.begin_step(batch);
  s.backend.embed(batch.ids, s.weights.embedding, s.x);
  int moe_layer = 0;
  Rows<const float> left;
  for (int i = 0; i < s.config.num_hidden_layers; ++i) {
    left = s.run_layer(s.weights.layers[static_cast<std::size_t>(i)], i, moe_layer, batch, left, s.x);
    moe_layer += s.config.is_moe_layer(i);
  }
  s.finish(left, s.x);
  s.end_step();
  return s.x;
}

bool Model::has_mtp() const { return state_->weights.mtp.has_value(); }

void Model::forward_mtp(const TokenBatch& batch, std::span<const std::int64_t> rows) {
  State& s = *state_;
  MtpWeights& w = s.weights.mtp.value();
  const std::int64_t tokens = batch.size(), hidden = s.config.hidden_size;
  const Rows<float> joined = s.joined.rows(tokens, 2 * hidden);
  const Rows<float> embedded = joined.columns(0, hidden), past = joined.columns(hidden, hidden);
  s.backend.embed(batch.ids, s.weights.embedding, embedded);
  s.backend.rms_norm(embedded, w.embedding_norm, s.config.rms_norm_eps, embedded);
  s.backend.gather_rows(s.x, rows, past);
  s.backend.rms_norm(past, s.weights.final_norm, s.config.rms_norm_eps, past);
  s.backend.rms_norm(past, w.hidden_norm, s.config.rms_norm_eps, past);

  s.guessed = s.guessed_memory.rows(tokens, hidden);
  s.backend.linear(joined, w.projection, {}, s.guessed);
  s.compute_angles(batch);
  s.begin_step(batch);
  const int index = s.config.num_hidden_layers;
  const auto last = s.counters.expert_tokens.size() / static_cast<std::size_t>(std::max(1, s.config.n_routed_experts));
  s.finish(s.run_layer(w.layer, index, static_cast<int>(last) - 1, batch, {}, s.guessed), s.guessed);
  s.end_step();
}

Rows<const float> Model::logits(std::span<const std::int64_t> rows) {
  return state_->logits(state_->x, state_->weights.final_norm, rows);
}

Rows<const float> Model::mtp_logits(std::span<const std::int64_t> rows) {
  return state_->logits(state_->guessed, state_->weights.mtp.value().head_norm, rows);
}

bool Model::can_sample() const {
  return !state_->placement.tensor_parallel && state_->backend.can_sample(state_->config.vocab_size);
}

void Model::sample(std::span<const std::int64_t> rows, std::span<const Draw> draws, std::span<std::int32_t> tokens) {
  State& s = *state_;
  s.backend.sample(s.own_logits(s.x, s.weights.final_norm, rows), draws, tokens);
}

void Model::mtp_sample(std::span<const std::int64_t> rows, std::span<const Draw> draws,
                       std::span<std::int32_t> tokens) {
  State& s = *state_;
  s.backend.sample(s.own_logits(s.guessed, s.weights.mtp.value().head_norm, rows), draws, tokens);
}

Rows<const float> Model::State::logits(Rows<const float> stream, std::span<const float> norm,
                                       std::span<const std::int64_t> rows) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const Rows<float> part = own_logits(stream, norm, rows);
  if (!placement.tensor_parallel) return backend.to_host(part, logit_room);
  // Each rank has its part of the vocabulary for all rows; gathered parts are put side by side again.
  std::vector<std::size_t> counts = vocab_counts;
  for (auto& c : counts) c *= static_cast<std::size_t>(n);
  local_logits.resize(static_cast<std::size_t>(n * config.vocab_size));
  const Rows<float> mine = backend.to_host(part, logit_room);
  comm.all_gather_v({mine.data, static_cast<std::size_t>(n * mine.cols)}, counts, local_logits);
  gathered.resize(static_cast<std::size_t>(n * config.vocab_size));
  const Rows<float> out(gathered.data(), n, config.vocab_size);
  const float* from = local_logits.data();
  std::int64_t column = 0;
  for (const std::size_t width : vocab_counts) {
    for (std::int64_t i = 0; i < n; ++i, from += width) std::copy_n(from, width, out[i] + column);
    column += static_cast<std::int64_t>(width);
  }
  return out;
}

std::int64_t Model::vocab_size() const { return state_->config.vocab_size; }
const Model::Counters& Model::counters() const {
  state_->fetch_counters();
  return state_->counters;
}
std::uint64_t Model::weight_bytes() const { return state_->weights.bytes; }
const ModelWeights& Model::weights() const { return state_->weights; }
ModelWeights Model::take_weights() { return std::move(state_->weights); }

}  // namespace shoal
