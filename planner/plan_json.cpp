#include <cmath>

#include "base/error.h"
#include "planner/plan.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

Json memory_json(const Plan& plan) {
  double kv = 0;
  Json ranks = Json::array();
  for (std::size_t r = 0; r < plan.memory.size(); ++r) {
    const RankMemory& m = plan.memory[r];
    const Device& device = plan.cluster.device_of(static_cast<int>(r));
    kv += m.kv;
    Json rank = {{"rank", r},
                 {"weights_bytes", std::llround(m.weights)},
                 {"kv_bytes", std::llround(m.kv)},
                 {"activations_bytes", std::llround(m.activations)},
                 {"exchange_bytes", std::llround(m.exchange)},
                 {"reserve_bytes", std::llround(m.reserve)},
                 {"total_bytes", std::llround(m.total())},
                 {"limit_bytes", std::llround(device.memory_bytes)}};
    if (device.companion) {
      rank["companion_bytes"] = std::llround(m.companion);
      rank["companion_limit_bytes"] = std::llround(device.companion->memory_bytes);
    }
    ranks.push_back(rank);
  }
  return {{"weights_bytes", std::llround(plan.weights_bytes)},
          {"kv_bytes_per_token", std::llround(plan.kv_bytes_per_token)},
          {"kv_bytes", std::llround(kv)},
          {"ranks", ranks}};
}

Json placement_json(const Plan& plan) {
  Json layers = Json::array();
  for (std::size_t layer = 0; layer < plan.experts.size(); ++layer) {
    if (plan.experts[layer].empty()) continue;
    Json experts = Json::array();
    for (const auto& replicas : plan.experts[layer]) {
      Json of_expert = Json::array();
      for (const Replica& r : replicas) of_expert.push_back({r.rank, r.share});
      experts.push_back(of_expert);
    }
    layers.push_back({{"layer", layer}, {"experts", experts}});
  }
  Json json = {{"redundant_experts", plan.redundant_experts}, {"imbalance", plan.imbalance}};
  if (plan.mean_imbalance > 0) json["mean_imbalance"] = plan.mean_imbalance;
  json["layers"] = layers;
  return json;
}

Json step_json(const StepTime& t) {
  return {{"dense_us", t.dense},       {"attention_us", t.attention},
          {"experts_us", t.experts},   {"activations_us", t.activations},
          {"exchange_us", t.exchange}, {"fixed_us", t.fixed},
          {"total_us", t.total}};
}

/// One expert's replicas: [[rank, share], ...].
std::vector<Replica> read_replicas(const nlohmann::json& list, int ranks, const std::string& place) {
  if (!list.is_array() || list.empty()) fail("{} is on no rank; it must be a list of [rank, share]", place);
  std::vector<Replica> replicas;
  double sum = 0;
  for (const auto& entry : list) {
    const bool pair = entry.is_array() && entry.size() == 2 && entry[0].is_number_integer() && entry[1].is_number();
    if (!pair) fail("{} has an entry that is not [rank, share]", place);
    const Replica r{entry[0].get<std::int32_t>(), entry[1].get<float>()};
    if (r.rank < 0 || r.rank >= ranks) fail("{} is on rank {}, and there are {}", place, r.rank, ranks);
    if (!replicas.empty() && r.rank <= replicas.back().rank) fail("{}: ranks must ascend, none twice", place);
    if (!(r.share >= 0)) fail("{} has a share of {}", place, r.share);
    sum += static_cast<double>(r.share);
    replicas.push_back(r);
  }
  if (std::abs(sum - 1) > 1e-3) fail("{}: shares add up to {}, not to 1", place, sum);
  return replicas;
}

JsonFields needed(const JsonFields& json, const char* key) {
  const auto object = json.object(key);
  if (!object) json.reject(key, "is missing");
  return *object;
}

double number_in(const JsonFields& json, const char* key) {
  if (!json.number(key)) json.reject(key, "is missing");
  return json.find(key)->get<double>();
}

}  // namespace

bool Plan::served() const {
  const auto has_companion = [](const NodeGroup& g) { return g.device.companion != nullptr; };
  return layout.tensor_parallel == served_tensor_parallel(n_routed_experts, layout.ranks) &&
         std::ranges::none_of(cluster.groups, has_companion);
}

Json Plan::to_json() const {
  Json json = {{"version", 1},
               {"model",
                {{"name", model},
                 {"parameters", parameters},
                 {"active_parameters", active_parameters},
                 {"num_hidden_layers", num_hidden_layers},
                 {"n_routed_experts", n_routed_experts}}},
               {"precision", precision},
               {"cluster", cluster.to_json()},
               {"workload",
                {{"context", workload.context},
                 {"concurrency", workload.concurrency},
                 {"kv_type", name_of(workload.kv)},
                 {"compute", workload.bf16_rows ? "bf16" : "f32"},
                 {"speculative", workload.mtp ? "mtp" : "none"},
                 {"max_batched_tokens", workload.max_batched_tokens}}},
               {"layout",
                {{"ranks", layout.ranks},
                 {"tensor_parallel", layout.tensor_parallel},
                 {"served", served()},
                 {"sliced_experts", layout.sliced_experts}}},
               {"fits", fits},
               {"changes", changes},
               {"memory", memory_json(*this)},
               {"prediction",
                {{"ttft_ms", prediction.ttft_ms},
                 {"tpot_ms", prediction.tpot_ms},
                 {"prefill_tokens_per_s", prediction.prefill_tokens_per_s},
                 {"decode_tokens_per_s", prediction.decode_tokens_per_s},
                 {"decode_step", step_json(prediction.decode)},
                 {"prefill_step", step_json(prediction.prefill)}}},
               {"placement", placement_json(*this)}};
  if (cluster.price_per_hour > 0 && prediction.decode_tokens_per_s > 0)
    json["prediction"]["price_per_million_tokens"] =
        cluster.price_per_hour / 3600 / prediction.decode_tokens_per_s * 1e6;
  return json;
}

Plan Plan::from_json(const nlohmann::json& document, const std::string& place) {
  const JsonFields json(document, place);
  if (json.integer("version", 1, 1 << 20) != 1) json.reject("version", "is not 1, the only one this program reads");
  Plan plan;
  const JsonFields model = needed(json, "model"), workload = needed(json, "workload"), layout = needed(json, "layout");
  plan.model = model.string_or("name", "");
  plan.num_hidden_layers = model.integer("num_hidden_layers", 1, 1 << 12);
  plan.n_routed_experts = model.integer("n_routed_experts", 0, 1 << 12);
  plan.parameters = static_cast<std::int64_t>(number_in(model, "parameters"));
  plan.active_parameters = static_cast<std::int64_t>(number_in(model, "active_parameters"));
  plan.precision = json.string_or("precision", "");
  if (!json.has("cluster")) json.reject("cluster", "is missing");
  plan.cluster = Cluster::from_json(*json.find("cluster"), place);
  plan.workload.context = workload.integer("context", 1, 1 << 30);
  plan.workload.concurrency = workload.integer("concurrency", 1, 1 << 30);
  plan.workload.max_batched_tokens = workload.integer("max_batched_tokens", 1, 1 << 30);
  const auto kv = find_kv_type(workload.string_or("kv_type", "bf16"));
  if (!kv) workload.reject("kv_type", "must be f32, bf16, fp8 or int8");
  plan.workload.kv = *kv;
  const std::string compute = workload.string_or("compute", plan.workload.kv == KvType::f32 ? "f32" : "bf16");
  if (compute != "f32" && compute != "bf16") workload.reject("compute", "must be f32 or bf16");
  plan.workload.bf16_rows = compute == "bf16";
  const std::string speculative = workload.string_or("speculative", "none");
  if (speculative != "none" && speculative != "mtp") workload.reject("speculative", "must be none or mtp");
  plan.workload.mtp = speculative == "mtp";
  plan.layout.ranks = layout.integer("ranks", 1, 1 << 24);
  plan.layout.tensor_parallel = layout.integer("tensor_parallel", 1, plan.layout.ranks);
  plan.layout.sliced_experts = layout.boolean_or("sliced_experts", false);
  if (plan.layout.ranks != plan.cluster.ranks())
    json.reject("layout", fmt::format("has {} ranks, and the cluster {}", plan.layout.ranks, plan.cluster.ranks()));
  plan.fits = json.boolean_or("fits", false);
  if (const auto* changes = json.find("changes"); changes && changes->is_array())
    for (const auto& change : *changes) plan.changes.push_back(change.is_string() ? change.get<std::string>() : "");

  const JsonFields memory = needed(json, "memory");
  plan.weights_bytes = number_in(memory, "weights_bytes");
  plan.kv_bytes_per_token = number_in(memory, "kv_bytes_per_token");
  const auto* ranks = memory.find("ranks");
  if (!ranks || !ranks->is_array() || static_cast<int>(ranks->size()) != plan.layout.ranks)
    memory.reject("ranks", fmt::format("must be a list of {} ranks", plan.layout.ranks));
  for (const auto& entry : *ranks) {
    const JsonFields rank(entry, place + ": memory.ranks");
    RankMemory m{.weights = number_in(rank, "weights_bytes"),
                 .kv = number_in(rank, "kv_bytes"),
                 .activations = number_in(rank, "activations_bytes"),
                 .exchange = number_in(rank, "exchange_bytes"),
                 .reserve = number_in(rank, "reserve_bytes")};
    if (rank.has("companion_bytes")) m.companion = number_in(rank, "companion_bytes");
    plan.memory.push_back(m);
  }

  const JsonFields placement = needed(json, "placement");
  plan.redundant_experts = placement.integer_or("redundant_experts", 0, 0, 1 << 20);
  plan.layout.replicas = plan.redundant_experts > 0;
  plan.imbalance = number_in(placement, "imbalance");
  if (placement.has("mean_imbalance")) plan.mean_imbalance = number_in(placement, "mean_imbalance");
  const auto* layers = placement.find("layers");
  if (!layers || !layers->is_array()) placement.reject("layers", "must be a list");
  if (plan.n_routed_experts > 0) plan.experts.resize(static_cast<std::size_t>(plan.num_hidden_layers));
  for (const auto& entry : *layers) {
    const JsonFields of_layer(entry, place + ": placement.layers");
    const int layer = of_layer.integer("layer", 0, plan.num_hidden_layers - 1);
    const auto* experts = of_layer.find("experts");
    if (!experts || !experts->is_array() || static_cast<int>(experts->size()) != plan.n_routed_experts)
      of_layer.reject("experts", fmt::format("of layer {} must be a list of {}", layer, plan.n_routed_experts));
    auto& to = plan.experts[static_cast<std::size_t>(layer)];
    if (!to.empty()) of_layer.reject("layer", fmt::format("{} comes twice", layer));
    for (std::size_t e = 0; e < experts->size(); ++e)
      to.push_back(
          read_replicas((*experts)[e], plan.layout.ranks, fmt::format("{}: layer {}: expert {}", place, layer, e)));
  }

  const JsonFields prediction = needed(json, "prediction");
  plan.prediction.ttft_ms = number_in(prediction, "ttft_ms");
  plan.prediction.tpot_ms = number_in(prediction, "tpot_ms");
  plan.prediction.prefill_tokens_per_s = number_in(prediction, "prefill_tokens_per_s");
  plan.prediction.decode_tokens_per_s = number_in(prediction, "decode_tokens_per_s");
  const auto step = [&](const char* key) {
    const JsonFields t = needed(prediction, key);
    const auto us = [&](const char* part) { return number_in(t, part); };
    return StepTime{.dense = us("dense_us"),
                    .attention = us("attention_us"),
                    .experts = us("experts_us"),
                    .activations = us("activations_us"),
                    .exchange = us("exchange_us"),
                    .fixed = us("fixed_us"),
                    .total = us("total_us")};
  };
  plan.prediction.decode = step("decode_step");
  plan.prediction.prefill = step("prefill_step");
  return plan;
}

}  // namespace shoal
