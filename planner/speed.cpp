#include "planner/speed.h"

#include <algorithm>
#include <cmath>

#include "planner/expert_slices.h"
#include "planner/placement.h"

namespace shoal {
namespace {

/// Distinct ones of n when k are drawn evenly.
double distinct(double n, double k) { return n <= 1 ? std::min(n, k) : n * (1 - std::pow(1 - 1 / n, k)); }

/// Whether a CPU makes each head's own keys and values of the latents, for `queries` tokens of a prompt that see
/// `context` positions on average: where enough of them see a position (kernels/backend.h, prompt_break_even;
/// runtime/query_ranges.h).
bool expands_latents(const ModelConfig& c, double queries, double context) {
  const double rank = c.kv_lora_rank, own = c.qk_nope_head_dim + c.v_head_dim;
  const double seeing = 2 * rank > own ? std::floor(own * rank / (2 * rank - own)) : 1e18;
  return queries >= seeing && queries * context >= seeing * (context + queries / 2);
}

double kv_bytes(const ModelConfig& c, KvType type) { return kv_bytes_per_token(c, type) / c.num_hidden_layers; }

}  // namespace

struct SpeedModel::Where {
  const Device& device;
  const SpeedConstants::OfDevice& k;
  /// How many times as fast as with all ranks at work, where only this part of them is.
  double memory(double part) const { return std::min(device.alone_memory, 1 / part); }
  double products(double part) const { return std::min(device.alone_products, 1 / part); }
};

SpeedModel::SpeedModel(const ModelConfig& config, const Precision& precision, const Cluster& cluster,
                       const Layout& layout, const Workload& workload, int redundant_experts,
                       const SpeedConstants& constants)
    : config_(config),
      precision_(precision),
      cluster_(cluster),
      layout_(layout),
      workload_(workload),
      redundant_(redundant_experts),
      constants_(constants) {
  for (int i = 0; i < config.num_hidden_layers; ++i) moe_layers_ += config.is_moe_layer(i);
  for (const ExpectedTensor& t : expected_tensors(config)) {
    if (!t.required() || t.part == Part::mtp || t.part == Part::embedding || t.shape.size() < 2) continue;
    const auto parameters = static_cast<double>(t.shape[0] * t.shape[1]);
    const WeightType& type = precision.type_of(config, t);
    const bool held = cluster.groups[0].device.measured;  // with these kernels; a card may stand for other engines
    const auto bytes = static_cast<double>((held ? type.held() : type).bytes(t.shape[0], t.shape[1]));
    if (t.part == Part::routed_experts) {
      expert_parameters_ += parameters / config.n_routed_experts / moe_layers_;
      expert_bytes_ += bytes / config.n_routed_experts / moe_layers_;
      expert_[&type] += parameters / config.n_routed_experts / moe_layers_;
    } else {
      dense_bytes_ += bytes;
      (t.part == Part::head ? head_parameters_ : dense_parameters_) += parameters;
      (t.part == Part::head ? head_ : dense_)[&type] += parameters;
    }
  }
  if (layout.sliced_experts) largest_slice_ = largest_slice(config, precision, layout.ranks);
  if (config.tie_word_embeddings) {
    head_parameters_ = static_cast<double>(config.vocab_size) * config.hidden_size;
    dense_bytes_ += head_parameters_ * 2;
    head_[&weight_type("BF16")] += head_parameters_;
  }
}

SpeedModel::Products SpeedModel::products(const Device& device, const Weights& weights, const ProductRates& rates,
                                          double read, double multiplied, double reading_part, double part) const {
  Products sum;
  if (read <= 0) return sum;
  const double tokens = std::max(1.0, multiplied / read);  // of each
  for (const auto& [type, parameters] : weights) {
    ProductRate rate{device.memory_bytes_per_s * constants_.measured.memory / (type->held().bits() / 8),
                     device.flops(type->bits() > 8.5     ? Arithmetic::bf16
                                  : type->block_rows > 1 ? Arithmetic::fp8
                                                         : Arithmetic::int8)};
    if (const auto known = device.linear.find(type->name); known != device.linear.end()) rate = known->second;
    if (const auto known = rates.find(type->name); known != rates.end()) rate = known->second;
    const double count = parameters * read;
    const auto seconds = [&](double each) { return rate.seconds(count, each) / constants_.measured.products; };
    const double reading = seconds(1);  // the first token's share is in it
    sum.reading += reading / std::min(rate.alone > 0 ? rate.alone : device.alone_memory, 1 / reading_part);
    sum.multiplying += (seconds(tokens) - reading) / std::min(device.alone_products, 1 / part);
  }
  return sum;
}

/// The most loaded rank over the mean where the pairs of tokens and experts fall on ranks by chance, `pairs` on each:
/// the largest of R numbers that scatter by their square root.
double SpeedModel::chance(double pairs) const {
  const double ranks = layout_.ranks;
  return std::min(ranks, 1 + 0.8 * std::sqrt(2 * std::log(ranks) * (1 - 1 / ranks) / pairs));
}

double SpeedModel::dense_us(const Step& step, const Where& w) const {
  const double tp = layout_.tensor_parallel;
  const Device& device = w.device;
  const SpeedConstants::OfDevice& k = w.k;
  if (device.measured && device.kind == Device::Kind::cpu) {
    const double part = step.average() / step.tokens;
    const Products dense = products(device, dense_, device.linear, 1, step.tokens, step.at_work, part),
                   head = products(device, head_, device.linear, 1, step.prefill ? 1 : step.tokens, step.at_work, part);
    return (dense.reading + head.reading + dense.multiplying + head.multiplying) / tp * 1e6;
  }
  const double flops = 2 * step.tokens * (dense_parameters_ + (step.prefill ? 0 : head_parameters_));
  const double streaming = dense_bytes_ / (device.memory_bytes_per_s * k.memory);
  const double computing = flops / (device.flops(precision_.arithmetic()) * k.products);
  return std::max(streaming, computing) / tp * 1e6;
}

double SpeedModel::attention_us(const Step& step, const Where& w) const {
  const Device& device = w.device;
  const SpeedConstants::OfDevice& k = w.k;
  const double part = step.average() / step.tokens;
  const ModelConfig& c = config_;
  const double tp = layout_.tensor_parallel;
  double width = 2.0 * c.head_dim, cached = kv_bytes(c, workload_.kv), expanded = 0;  // products with kv_b_proj
  if (c.is_mla()) {  // every rank of a group has the latents
    const bool gpu = device.kind == Device::Kind::gpu;
    const double queries = step.tokens / step.sequences;  // of each prompt
    const bool unpacked = step.prefill && (gpu || (workload_.bf16_rows && expands_latents(c, queries, step.context)));
    width = unpacked ? c.qk_head_dim() + c.v_head_dim : c.kv_width() + c.kv_lora_rank;
    // Every chunk unpacks what came before it anew; its own tokens are among the dense parts' either way.
    const double past = step.sequences * std::max(0.0, step.context - queries / 2);
    if (unpacked && !gpu) expanded = past * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim);
  } else {
    const HeadSlice most = head_slice(c.num_attention_heads, c.num_key_value_heads, layout_.tensor_parallel, 0);
    cached *= static_cast<double>(most.kv_heads.count) / c.num_key_value_heads;
  }
  const double pairs = step.tokens * step.context * c.num_hidden_layers;
  const double of_head = pairs * width / k.attention + c.num_hidden_layers * expanded / k.products;
  const double computing = 2 * of_head * c.num_attention_heads / tp / device.bf16_flops;
  // Tokens of one prompt read the same cache; a prompt's chunk streams it about once for 128 of them.
  const double streaming = pairs * cached / (step.prefill ? 128 : 1) / (device.memory_bytes_per_s * k.memory);
  return std::max(streaming / w.memory(part), computing / w.products(part)) * 1e6;
}

double SpeedModel::experts_us(const Step& step, const Where& w, double imbalance) const {
  if (moe_layers_ == 0) return 0;
  const Device& device = w.device;
  const SpeedConstants::OfDevice& k = w.k;
  const double ranks = layout_.ranks, slots = config_.n_routed_experts + redundant_;
  const double picked =
      std::min(1.0, config_.num_experts_per_tok / slots);                  // how likely a token picks what a slot holds
  const double tokens = step.average() * ranks / layout_.tensor_parallel;  // of all
  // Unequal ranks have experts and tokens in proportion to their bandwidth (plan.cpp, expert_ranks).
  double bandwidth = 0;
  for (const NodeGroup& g : cluster_.groups) bandwidth += g.nodes * g.ranks_per_node * g.device.memory_bytes_per_s;
  const double part = device.memory_bytes_per_s / bandwidth;
  // Tokens and experts that meet on such a rank in one layer, on average and on the most loaded of them.
  const double pairs = tokens * config_.num_experts_per_tok * part;
  const double most = layout_.sliced_experts ? largest_slice_ : ranks > 1 ? std::max(imbalance, chance(pairs)) : 1;
  const auto time = [&](double load, double at_work) {
    // A larger slice is more of an expert, not more tokens for it.
    const double read = layout_.sliced_experts ? slots * part * load * (1 - std::pow(1 - picked, tokens))
                                               : slots * part * (1 - std::pow(1 - picked, tokens * load));
    if (device.measured && device.kind == Device::Kind::cpu) {
      const Products p = products(device, expert_, device.experts, read, pairs * load, at_work, at_work);
      return p.reading + p.multiplying;
    }
    const double streaming = read * expert_bytes_ / (device.memory_bytes_per_s * k.memory);
    return std::max(streaming,
                    2 * pairs * load * expert_parameters_ / (device.flops(precision_.arithmetic()) * k.products));
  };
  // Where ranks share cores and bandwidth, the others' share falls to the most loaded one as they get ready.
  return std::max(time(most, 1e-9), time(1, 1)) * moe_layers_ * 1e6;
}

double SpeedModel::activations_us(const Step& step, const Where& w) const {
  const Device& device = w.device;
  const SpeedConstants::OfDevice& k = w.k;
  const ModelConfig& c = config_;
  const double tp = layout_.tensor_parallel, layers = c.num_hidden_layers;
  const double attention = c.is_mla()
                               ? c.num_attention_heads * (c.qk_head_dim() + c.qk_nope_head_dim + 2.0 * c.v_head_dim)
                               : 3.0 * c.num_attention_heads * c.head_dim;
  const double dense = 3.0 * c.intermediate_size * (layers - moe_layers_);
  const double experts =
      (c.num_experts_per_tok + c.n_shared_experts) * (2.0 * c.hidden_size + 3.0 * c.moe_intermediate_size);
  const double elements = layers * (4.0 * c.hidden_size + attention / tp) + dense / tp + moe_layers_ * experts / tp;
  return step.tokens * elements * 2 * k.passes / (device.memory_bytes_per_s * k.memory) * 1e6;
}

double SpeedModel::exchange_us(const Step& step) const {
  const ModelConfig& c = config_;
  const Link& near = cluster_.groups[0].intra_node;
  const Link& far = cluster_.inter_node;
  const auto time = [&](const Link& link, double bytes) {
    const double reached = cluster_.groups[0].device.measured ? 1 : constants_.link;
    return link.bytes_per_s > 0 ? bytes / (link.bytes_per_s * reached) * 1e6 : 0;
  };
  const bool cpu = cluster_.groups[0].device.kind == Device::Kind::cpu;
  double us = 0;
  if (const double tp = layout_.tensor_parallel; tp > 1) {
    // Two all-reduces a layer, as reduce-scatter and all-gather, on a CPU in FP32; small ones are bound by latency.
    const double bytes = step.tokens * c.hidden_size * (cpu ? 4 : 2) * 2 * (tp - 1) / tp;
    const bool within = tp <= cluster_.largest_node();
    const Link& link = within ? near : far;
    us += 2 * c.num_hidden_layers * (time(link, bytes) + 2 * link.latency_us);
  }
  if (moe_layers_ == 0 || layout_.ranks == 1) return us;

  const double tokens = step.tokens / layout_.tensor_parallel, ranks = layout_.ranks, nodes = cluster_.nodes();
  const double k = c.num_experts_per_tok;
  // Rows travel as they are computed with, on GPUs to experts of E4M3 as such (kernels/cuda/exchange_wire.h).
  const double back = workload_.bf16_rows ? 2 : 4;
  const bool e4m3 = !cpu && workload_.bf16_rows && precision_.arithmetic() == Arithmetic::fp8 &&
                    cluster_.groups[0].device.fp8_flops > 0;
  const double row = c.hidden_size * ((e4m3 ? 1 : back) + back);  // dispatch and combine
  const double rank_count = layout_.sliced_experts ? ranks - 1 : distinct(ranks, k) * (ranks - 1) / ranks;
  // A token goes once to a node, where it is passed on (collectives/hops.h); from a GPU that decodes to each rank, by
  // slots of its own.
  const bool by_node = cluster_.two_hops() && (cpu || step.prefill);
  const double node_limit = c.n_group > 1 ? std::min<double>(c.topk_group, nodes) : nodes;
  const double node_count =
      layout_.sliced_experts ? nodes - 1 : std::min(distinct(nodes, k), node_limit) * (nodes - 1) / nodes;
  const double far_count = nodes == 1 ? 0 : by_node ? node_count : rank_count * (nodes - 1) / nodes;
  const double near_count = by_node ? rank_count : rank_count / nodes;
  const double latency = 2 * ((nodes > 1 ? far.latency_us : 0) + (nodes == 1 || by_node ? near.latency_us : 0));
  us += moe_layers_ * (std::max(time(far, tokens * far_count * row), time(near, tokens * near_count * row)) + latency);
  return us;
}

StepTime SpeedModel::step(const Step& step, double imbalance) const {
  if (imbalance <= 0) imbalance = constants_.imbalance;
  StepTime slowest;
  for (const NodeGroup& group : cluster_.groups) {
    const Device& device = group.device;
    const Device& main = device.companion ? *device.companion : device;
    const auto constants_of = [&](const Device& d) -> const SpeedConstants::OfDevice& {
      return d.measured ? constants_.measured : d.kind == Device::Kind::gpu ? constants_.gpu : constants_.cpu;
    };
    const auto at = [&](const Device& d) { return Where{d, constants_of(d)}; };
    StepTime t;
    t.dense = dense_us(step, at(main));
    t.attention = attention_us(step, at(main));
    t.experts = experts_us(step, at(device), imbalance);
    t.activations = activations_us(step, at(main));
    t.exchange = exchange_us(step);
    t.fixed = constants_of(main).step_us + config_.num_hidden_layers * constants_of(main).layer_us;
    if (device.companion) t.fixed += moe_layers_ * (constants_.cpu.layer_us + constants_.companion_us);
    const double computing = t.dense + t.attention + t.experts + t.activations;
    const bool overlaps = main.kind == Device::Kind::gpu && moe_layers_ > 0 && layout_.ranks > 1;
    t.total = t.fixed + computing + t.exchange - (overlaps ? constants_.overlap * std::min(computing, t.exchange) : 0);
    if (t.total > slowest.total) slowest = t;
  }
  return slowest;
}

Prediction predict(const SpeedModel& model, const Workload& workload, const Layout& layout, int prompt,
                   double imbalance) {
  Prediction p;
  const int groups = layout.ranks / layout.tensor_parallel;
  const double sequences = static_cast<double>(workload.concurrency) / groups;  // on average
  p.decode = model.step({.tokens = std::ceil(sequences),
                         .mean = sequences,
                         .at_work = std::min(1.0, sequences),
                         .context = static_cast<double>(workload.context)},
                        imbalance);
  p.tpot_ms = p.decode.total / 1e3;
  p.decode_tokens_per_s = workload.concurrency / p.decode.total * 1e6;

  const double chunk = workload.max_batched_tokens;  // a prompt alone takes as many as it has
  const Step busy{
      .tokens = chunk, .context = prompt / 2.0, .sequences = std::max(1.0, chunk / prompt), .prefill = true};
  p.prefill = model.step(busy, imbalance);
  p.prefill_tokens_per_s = chunk * groups / p.prefill.total * 1e6;
  const auto alone = [&](double tokens) {
    if (tokens <= 0) return 0.0;
    const Step step{
        .tokens = tokens, .mean = tokens / groups, .at_work = 1.0 / groups, .context = prompt / 2.0, .prefill = true};
    return model.step(step, imbalance).total / 1e3;
  };
  p.ttft_ms = std::floor(prompt / chunk) * alone(chunk) + alone(std::fmod(prompt, chunk));
  return p;
}

}  // namespace shoal
