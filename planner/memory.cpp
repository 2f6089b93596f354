#include "planner/memory.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "base/error.h"

namespace shoal {
namespace {

constexpr double cpu_reserve = 28e6;    // program, MPI and threads of an idle rank, measured
constexpr double server_reserve = 3e6;  // more on rank 0, which answers clients and batches their requests, measured
constexpr double token_reserve = 40;    // there for each token in anybody's cache: pages, requests; measured
constexpr double gpu_reserve = 3e9;     // CUDA context, libraries' workspaces, NCCL, fragmentation, slots (gpu_moe.h)
constexpr double packed_f32 = 6;        // bytes of an FP32 activation in three BF16 parts on AMX; 4 elsewhere
constexpr double packed_bf16 = 2, packed_rounded = 4;  // BF16 as FP32
constexpr double packed_int8 = 1.75;  // for weights of blocks: kernels/cpu/gemm_quantized.inl, block_bytes_of

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Working memory of a step of `tokens` on a CPU rank: the FP32 buffers of runtime/model.cpp, and those of kernels/cpu:
/// what linear layers pack of their inputs, and feed-forward blocks, routed experts' among them, of theirs and of gate
/// * up. A packed element has `packed_bytes`. `routed`: tokens that experts here are asked for, for each of this rank's
/// own, counted once for each expert; `expert_width`: intermediate width of an expert that is here.
double cpu_activations(const ModelConfig& c, double tokens, int tensor_parallel, double packed_bytes, double routed,
                       double expert_width, bool mtp) {
  const double hidden = c.hidden_size, heads = std::ceil(static_cast<double>(c.num_attention_heads) / tensor_parallel);
  double width = 3 * hidden;     // residual stream, normed, branch
  if (mtp) width += 3 * hidden;  // its own stream, and embedding and hidden state joined
  double widest_input = hidden;
  if (c.is_mla()) {
    width += c.q_lora_rank + heads * c.qk_head_dim() + c.kv_width();
    width += heads * c.kv_width() + heads * (c.kv_lora_rank + c.v_head_dim);
    widest_input = std::max(hidden, heads * std::max(c.kv_lora_rank, c.v_head_dim));
  } else {
    width += 2 * heads * c.head_dim + c.kv_width() / static_cast<double>(tensor_parallel);
    widest_input = std::max(hidden, heads * c.head_dim);
  }
  const double logits = std::max(tokens * c.n_routed_experts, static_cast<double>(logit_rows) * c.vocab_size);
  const double ffn = std::ceil(static_cast<double>(c.intermediate_size) / tensor_parallel);
  const double inputs = std::max(1.0, routed) * hidden, gated = std::max(ffn, routed * expert_width);
  return 4 * (tokens * width + logits) + tokens * (packed_bytes * (widest_input + inputs + gated) + 4 * gated);
}

/// What attention of so many heads over up to `context` tokens takes on a CPU: stretches of a few queries' contexts
/// whose results wait to be merged (kernels/cpu/attention.cpp); and with `--compute bf16`, for prompts
/// (kernels/cpu/prompt_attention.cpp), some heads' keys and values, once as made and once in blocks (of BF16, or of
/// half as many heads as floats), and kv_b_proj's half for keys turned.
double cpu_attention(const ModelConfig& c, double context, double heads, bool bf16_rows) {
  constexpr double most_parts = 128 << 20, most_blocks = 64 << 20, stretch = 512, queries = 32;
  constexpr double rows = 8192, fewest = 256, turned = 16;
  const double parts = queries * std::ceil(context / stretch);
  const double waiting = std::min(most_parts, 4 * heads * parts * (c.is_mla() ? c.kv_lora_rank : c.head_dim));
  if (!c.is_mla() || !bf16_rows) return waiting;
  const double own = c.qk_nope_head_dim + c.v_head_dim, half = c.qk_nope_head_dim * c.kv_lora_rank;
  const double of_head = 2 * context * (c.qk_head_dim() + c.v_head_dim), in_floats = 2 * of_head;
  const double together = std::clamp(std::floor(most_blocks / in_floats), 1.0, std::ceil(heads / 2));
  const double blocks = std::min(heads * of_head, std::max(most_blocks, in_floats));
  const double expanded =
      std::max(std::min(heads * context, std::max(rows, fewest * heads)) * own, std::min(turned, heads) * half);
  const double latents = std::min(context, std::max(rows / together, fewest)) * c.kv_width();
  return waiting + blocks + 4 * (expanded + latents) + 2 * heads * half;
}

double gpu_activations(const ModelConfig& c, double tokens, int tensor_parallel, double pairs, double expert_width) {
  const double heads = std::ceil(static_cast<double>(c.num_attention_heads) / tensor_parallel);
  const double attention =
      c.is_mla() ? heads * (c.qk_head_dim() + c.kv_width() + c.kv_lora_rank) : 3 * heads * c.head_dim;
  const double ffn = 2.0 * c.intermediate_size / tensor_parallel;
  return 2 * tokens * (4.0 * c.hidden_size + attention + ffn) + 2 * pairs * (c.hidden_size + 2 * expert_width) +
         4.0 * logit_rows * c.vocab_size;
}

}  // namespace

std::optional<KvType> find_kv_type(std::string_view name) {
  for (const KvType type : {KvType::f32, KvType::bf16, KvType::fp8, KvType::int8})
    if (name_of(type) == name) return type;
  return std::nullopt;
}

KvType kv_type_from(const std::string& name) {
  if (const auto type = find_kv_type(name)) return *type;
  throw Error("the KV cache type " + name + " is not known (f32, bf16, fp8, int8)", ExitCode::usage);
}

double kv_bytes_per_token(const ModelConfig& config, KvType type) {
  return static_cast<double>(kv_row_bytes(type, config.kv_width()) * config.num_hidden_layers);
}

HeldWeights::HeldWeights(const ModelConfig& config, const Precision& precision, Device::Kind kind, bool mtp)
    : config_(config),
      kind_(kind),
      expert_(static_cast<std::size_t>(config.num_hidden_layers + (mtp ? 1 : 0))),
      expert_if_cut_(expert_.size()) {
  using Cut = Piece::Cut;
  for (const ExpectedTensor& t : expected_tensors(config)) {
    const bool guesses = mtp && t.part == Part::mtp && t.need == Need::with_mtp_layer &&
                         t.layer == config.num_hidden_layers && !t.name.ends_with("_scale_inv");
    if (!guesses && (!t.required() || t.part == Part::mtp)) continue;
    const WeightType* type = &precision.type_of(config, t);
    const std::int64_t rows = t.shape.size() > 1 ? t.shape[0] : 1, cols = t.shape.back();
    if (t.name.ends_with("gate_proj.weight") && type->block_cols > 1 && type->block_rows == 1) quantized_ = true;
    const auto is = [&](std::string_view leaf) { return t.name.ends_with(leaf); };
    if (t.part == Part::routed_experts || (guesses && t.name.find(".mlp.experts.") != std::string::npos)) {
      const double bytes = bytes_of({type, rows, cols, Cut::none}, rows, cols) / config.n_routed_experts;
      expert_[static_cast<std::size_t>(t.layer)] += bytes;
      if (is("down_proj.weight")) {
        expert_block_ = std::max(expert_block_, type->block_cols);
        const double cut =
            bytes_of({cut_along_rows(type), rows, cols, Cut::none}, rows, cols) / config.n_routed_experts;
        expert_if_cut_[static_cast<std::size_t>(t.layer)] += cut - bytes;
      }
      continue;
    }
    const bool vector = t.shape.size() < 2;
    if (vector || t.part == Part::router || is(".mlp.gate.weight")) type = &weight_type("F32");
    Cut cut = Cut::none;
    if (is("q_proj.weight") || is("q_b_proj.weight") || is("kv_b_proj.weight")) cut = Cut::heads;
    if (is("k_proj.weight") || is("v_proj.weight")) cut = Cut::kv_heads;
    if (is("o_proj.weight")) cut = Cut::head_cols;
    if (is("gate_proj.weight") || is("up_proj.weight")) cut = Cut::ffn_rows;
    if (is("down_proj.weight")) cut = Cut::ffn_cols;
    if (t.part == Part::head) cut = Cut::vocab;
    if (is("kv_b_proj.weight") && type->block_cols > 1 && type->block_rows == 1 && !precision.is_gguf()) {
      // The keys' half of each head is transposed, which blocks along a row do not survive. GGUF files have it so.
      const std::int64_t keys = rows / (config.qk_nope_head_dim + config.v_head_dim) * config.qk_nope_head_dim;
      dense_.push_back({&weight_type("F32"), keys, cols, cut});
      dense_.push_back({type, rows - keys, cols, cut});
      continue;
    }
    dense_.push_back({type, rows, cols, cut});
  }
}

double HeldWeights::bytes_of(const Piece& piece, std::int64_t rows, std::int64_t cols) const {
  if (rows == 0 || cols == 0) return 0;
  if (rows == 1 || kind_ == Device::Kind::gpu) return static_cast<double>(piece.type->held().bytes(rows, cols));
  const std::int64_t padded_cols = piece.type->block_cols == 1 ? round_up(cols, 2) : cols;
  return static_cast<double>(piece.type->held().bytes(round_up(rows, panel_rows), padded_cols));
}

double HeldWeights::slice_part(int ranks, int rank) const {
  const Slice mine = expert_slice(config_, ranks, rank, expert_block_);
  return static_cast<double>(mine.count) / static_cast<double>(config_.moe_intermediate_size);
}

double HeldWeights::slice_bytes(int layer, int ranks, int rank) const {
  const auto l = static_cast<std::size_t>(layer);
  return (expert_[l] + (ranks > 1 ? expert_if_cut_[l] : 0)) * slice_part(ranks, rank);
}

const WeightType* HeldWeights::cut_along_rows(const WeightType* type) const {
  const bool scattered = config_.quantization && config_.quantization->act_order && type->name.starts_with("INT");
  return scattered ? &weight_type("F32") : type;
}

double HeldWeights::dense_bytes(int tensor_parallel, int rank) const {
  using Cut = Piece::Cut;
  const ModelConfig& c = config_;
  const HeadSlice mine =
      tensor_parallel > 1 && !c.is_mla()
          ? head_slice(c.num_attention_heads, c.num_key_value_heads, tensor_parallel, rank)
          : HeadSlice{slice_of(c.num_attention_heads, tensor_parallel, rank), {0, c.num_key_value_heads}};
  const auto part = [&](std::int64_t total, std::int64_t count, std::int64_t all) { return total / all * count; };
  std::int64_t block = 1;
  for (const Piece& p : dense_)
    if (p.cut == Cut::ffn_cols) block = std::max<std::int64_t>(block, p.type->block_cols);
  const std::int64_t unit = cut_unit(c.intermediate_size, tensor_parallel, block);
  double sum = 0;
  for (const Piece& whole : dense_) {
    Piece p = whole;
    std::int64_t rows = p.rows, cols = p.cols;
    switch (p.cut) {
      case Cut::none:
        break;
      case Cut::heads:
        rows = part(rows, mine.heads.count, c.num_attention_heads);
        break;
      case Cut::kv_heads:
        rows = part(rows, mine.kv_heads.count, c.num_key_value_heads);
        break;
      case Cut::head_cols:
        cols = part(cols, mine.heads.count, c.num_attention_heads);
        if (cols < p.cols) p.type = cut_along_rows(p.type);
        break;
      case Cut::ffn_rows:
        rows = slice_of(rows, tensor_parallel, rank, unit).count;
        break;
      case Cut::ffn_cols:
        cols = slice_of(cols, tensor_parallel, rank, unit).count;
        if (cols < p.cols) p.type = cut_along_rows(p.type);
        break;
      case Cut::vocab:
        rows = slice_of(rows, tensor_parallel, rank, panel_rows).count;
        break;
    }
    sum += bytes_of(p, rows, cols);
  }
  if (c.tie_word_embeddings && tensor_parallel > 1) {  // then the head is a copy of this rank's part
    const Piece head{dense_.front().type, c.vocab_size, c.hidden_size, Cut::vocab};
    sum += bytes_of(head, slice_of(c.vocab_size, tensor_parallel, rank, panel_rows).count, c.hidden_size);
  }
  return sum;
}

int sequences_on(const Workload& workload, const Layout& layout, int rank) {
  const int groups = layout.ranks / layout.tensor_parallel, group = rank / layout.tensor_parallel;
  return workload.concurrency / groups + (group < workload.concurrency % groups ? 1 : 0);
}

RankMemory rank_memory(const ModelConfig& config, const HeldWeights& weights, const Workload& workload,
                       const Layout& layout, const Cluster& cluster, int rank, std::span<const int> held_experts) {
  RankMemory m;
  const Device& device = cluster.device_of(rank);
  const bool gpu = device.kind == Device::Kind::gpu;
  const int tp = layout.tensor_parallel, in_group = rank % tp;
  const double dense = weights.dense_bytes(tp, in_group);
  m.weights = dense;
  const double part = layout.sliced_experts ? weights.slice_part(layout.ranks, rank) : 1;
  for (std::size_t layer = 0; layer < held_experts.size(); ++layer)
    m.weights +=
        held_experts[layer] * (layout.sliced_experts ? weights.slice_bytes(static_cast<int>(layer), layout.ranks, rank)
                                                     : weights.expert_bytes(static_cast<int>(layer)));

  double per_token = kv_bytes_per_token(config, workload.kv);
  if (workload.mtp) per_token *= (config.num_hidden_layers + 1.0) / config.num_hidden_layers;
  double heads = config.num_attention_heads;
  if (tp > 1 && !config.is_mla()) {
    const HeadSlice mine = head_slice(config.num_attention_heads, config.num_key_value_heads, tp, in_group);
    heads = static_cast<double>(mine.heads.count);
    per_token *= static_cast<double>(mine.kv_heads.count) / config.num_key_value_heads;
  }
  m.kv = sequences_on(workload, layout, rank) * static_cast<double>(round_up(workload.context, kv_page_tokens)) *
         per_token;

  const double tokens = workload.max_batched_tokens;
  const bool bf16_rows = workload.bf16_rows;
  // Steps differ in where their tokens go, and buffers keep the size of the largest.
  const double peak = layout.ranks > 1 ? 1.25 : 1;
  double arriving = 0;  // rows that all ranks' tokens bring, at even routing
  if (config.n_routed_experts > 0) {
    arriving = tokens * (layout.sliced_experts ? layout.ranks : std::min(config.num_experts_per_tok, layout.ranks));
    // Dispatch and combine, out and in, as FP32; or as BF16, and their FP32 forms too.
    const double row = config.hidden_size * 8.0;
    // What a rank passes on for its host.
    const bool two_hops = cluster.two_hops();
    const int to_nodes =
        layout.sliced_experts ? cluster.nodes() : std::min(config.num_experts_per_tok, cluster.nodes());
    const double passing = two_hops ? tokens * to_nodes : 0;
    const double answers =
        layout.replicas ? (two_hops ? 2 : 1) * tokens * config.num_experts_per_tok : arriving + passing;
    m.exchange = (arriving + passing + answers) * row * peak;
  } else if (tp > 1) {
    // Sums go out and come in by slices of a piece, each through four slots that both of its ranks have in their
    // memory.
    const double piece = std::min(tokens * config.hidden_size * 4.0, 16.0 * (1 << 20));
    m.exchange = 8 * (tp - 1.0) / tp * piece;
  }
  // A slice is asked for every token with all of its experts.
  const bool sliced = layout.sliced_experts;
  const double routed = config.num_experts_per_tok * (sliced ? layout.ranks : peak);
  const double expert_width = config.moe_intermediate_size * part;
  m.activations = gpu ? gpu_activations(config, tokens, tp, sliced ? tokens * routed : arriving, expert_width)
                      : cpu_activations(config, tokens, tp,
                                        weights.quantized()    ? packed_int8
                                        : !bf16_rows           ? packed_f32
                                        : device.bf16_products ? packed_bf16
                                                               : packed_rounded,
                                        routed, expert_width, workload.mtp) +
                            cpu_attention(config, workload.context, heads, bf16_rows);
  const double cached = static_cast<double>(workload.concurrency) * workload.context;
  m.reserve = gpu ? gpu_reserve : cpu_reserve + (rank == 0 ? server_reserve + token_reserve * cached : 0);
  if (device.companion) m.companion = dense + m.kv + gpu_activations(config, tokens, tp, 0, 0) + gpu_reserve;
  return m;
}

}  // namespace shoal
