#include "planner/cluster.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "planner/weight_types.h"

namespace shoal {
namespace {

double not_negative(const JsonFields& json, const char* key) {
  if (!json.number(key)) return 0;  // which also checks that it is a number
  const double value = json.find(key)->get<double>();
  if (value < 0) json.reject(key, fmt::format("is {}, and must not be negative", value));
  if (value > 1e9) json.reject(key, fmt::format("is {}, more than anything of this kind has", value));
  return value;
}

double above_zero(const JsonFields& json, const char* key) {
  if (!json.has(key)) json.reject(key, "is missing");
  const double value = not_negative(json, key);
  if (value == 0) json.reject(key, "is 0, and must be above zero");
  return value;
}

ProductRates read_rates(const JsonFields& json, const char* key) {
  ProductRates rates;
  const auto types = json.object(key);
  if (!types) return rates;
  for (const auto& [type, unused] : json.find(key)->items()) {
    if (!find_weight_type(type)) types->reject(type, "is no weight type");
    const auto rate = types->object(type.c_str());
    if (!rate) types->reject(type, "must be an object");
    ProductRate& r = rates[type] = {above_zero(*rate, "weights_g_s") * 1e9, above_zero(*rate, "tflops") * 1e12};
    r.alone = not_negative(*rate, "alone");
    const auto few = rate->object("weights_g_s_with");
    if (!few) continue;
    for (const auto& [tokens, unused2] : rate->find("weights_g_s_with")->items()) {
      const int n = std::atoi(tokens.c_str());
      if (n < 2 || std::to_string(n) != tokens) few->reject(tokens.c_str(), "is no number of tokens above one");
      r.few[n] = above_zero(*few, tokens.c_str()) * 1e9;
    }
  }
  return rates;
}

nlohmann::ordered_json write_rates(const ProductRates& rates) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [type, rate] : rates) {
    json[type] = {{"weights_g_s", rate.weights_per_s / 1e9}, {"tflops", rate.flops / 1e12}};
    if (rate.alone > 0) json[type]["alone"] = rate.alone;
    for (const auto& [tokens, per_s] : rate.few) json[type]["weights_g_s_with"][std::to_string(tokens)] = per_s / 1e9;
  }
  return json;
}

Device read_device(const JsonFields& json) {
  Device d;
  if (!json.has("kind")) json.reject("kind", "is missing, and must be cpu or gpu");
  const std::string kind = json.string_or("kind", "");
  if (kind != "cpu" && kind != "gpu") json.reject("kind", fmt::format("is \"{}\", and must be cpu or gpu", kind));
  d.kind = kind == "cpu" ? Device::Kind::cpu : Device::Kind::gpu;
  d.name = json.string_or("name", kind);
  d.memory_bytes = above_zero(json, "memory_gb") * 1e9;
  d.memory_bytes_per_s = above_zero(json, "memory_bandwidth_gb_s") * 1e9;
  const auto tflops = json.object("tflops");
  if (!tflops) json.reject("tflops", "is missing");
  d.bf16_flops = above_zero(*tflops, "bf16") * 1e12;
  d.fp8_flops = not_negative(*tflops, "fp8") * 1e12;
  d.int8_flops = not_negative(*tflops, "int8") * 1e12;
  d.bf16_products = json.boolean_or("bf16_products", true);
  d.measured = json.boolean_or("measured", false);
  d.linear = read_rates(json, "linear");
  d.experts = read_rates(json, "experts");
  if (const auto alone = json.object("alone")) {
    d.alone_memory = above_zero(*alone, "memory");
    d.alone_products = above_zero(*alone, "products");
  }
  if (const auto companion = json.object("companion")) d.companion = std::make_shared<Device>(read_device(*companion));
  return d;
}

Link read_link(const JsonFields& json, const char* key, bool needed) {
  const auto link = json.object(key);
  if (!link && needed) json.reject(key, "is missing");
  if (!link) return {};
  return {above_zero(*link, "bandwidth_gb_s") * 1e9, not_negative(*link, "latency_us")};
}

NodeGroup read_group(const JsonFields& json) {
  NodeGroup g;
  g.nodes = json.integer_or("nodes", 1, 1, 1 << 16);
  g.ranks_per_node = json.integer("ranks_per_node", 1, 1 << 10);
  const auto device = json.object("device");
  if (!device) json.reject("device", "is missing");
  g.device = read_device(*device);
  g.intra_node = read_link(json, "intra_node", g.ranks_per_node > 1);
  return g;
}

nlohmann::ordered_json write_device(const Device& d) {
  nlohmann::ordered_json json = {{"kind", d.kind == Device::Kind::cpu ? "cpu" : "gpu"},
                                 {"name", d.name},
                                 {"memory_gb", d.memory_bytes / 1e9},
                                 {"memory_bandwidth_gb_s", d.memory_bytes_per_s / 1e9},
                                 {"tflops", {{"bf16", d.bf16_flops / 1e12}}}};
  if (d.fp8_flops > 0) json["tflops"]["fp8"] = d.fp8_flops / 1e12;
  if (d.int8_flops > 0) json["tflops"]["int8"] = d.int8_flops / 1e12;
  if (!d.bf16_products) json["bf16_products"] = false;
  if (d.measured) json["measured"] = true;
  if (!d.linear.empty()) json["linear"] = write_rates(d.linear);
  if (!d.experts.empty()) json["experts"] = write_rates(d.experts);
  if (d.alone_memory != 1 || d.alone_products != 1)
    json["alone"] = {{"memory", d.alone_memory}, {"products", d.alone_products}};
  if (d.companion) json["companion"] = write_device(*d.companion);
  return json;
}

nlohmann::ordered_json write_link(const Link& link) {
  return {{"bandwidth_gb_s", link.bytes_per_s / 1e9}, {"latency_us", link.latency_us}};
}

}  // namespace

double ProductRate::seconds(double weights, double tokens) const {
  double known = 1, of_known = 1 / weights_per_s;  // seconds of a weight
  for (const auto& [n, per_s] : few) {
    const double of_n = 1 / per_s;
    if (tokens <= n) return weights * (of_known + (of_n - of_known) * (tokens - known) / (n - known));
    known = n, of_known = of_n;
  }
  return weights * (of_known + 2 * (tokens - known) / flops);
}

double Device::flops(Arithmetic arithmetic) const {
  const double narrow = arithmetic == Arithmetic::fp8 ? fp8_flops : arithmetic == Arithmetic::int8 ? int8_flops : 0;
  return narrow > 0 ? narrow : bf16_flops;
}

int Cluster::ranks() const {
  int n = 0;
  for (const NodeGroup& g : groups) n += g.nodes * g.ranks_per_node;
  return n;
}

int Cluster::nodes() const {
  int n = 0;
  for (const NodeGroup& g : groups) n += g.nodes;
  return n;
}

int Cluster::largest_node() const {
  int n = 0;
  for (const NodeGroup& g : groups) n = std::max(n, g.ranks_per_node);
  return n;
}

bool Cluster::two_hops() const {
  const int n = groups[0].ranks_per_node;
  return nodes() > 1 && n > 1 && std::ranges::all_of(groups, [n](const NodeGroup& g) { return g.ranks_per_node == n; });
}

const NodeGroup& Cluster::group_of(int rank) const {
  for (const NodeGroup& g : groups) {
    if (rank < g.nodes * g.ranks_per_node) return g;
    rank -= g.nodes * g.ranks_per_node;
  }
  return groups.back();
}

int Cluster::node_of(int rank) const {
  int node = 0;
  for (const NodeGroup& g : groups) {
    if (rank < g.nodes * g.ranks_per_node) return node + rank / g.ranks_per_node;
    rank -= g.nodes * g.ranks_per_node;
    node += g.nodes;
  }
  return node;
}

Cluster Cluster::from_json(const nlohmann::json& document, const std::string& name) {
  const JsonFields json(document, "cluster " + name);
  Cluster cluster;
  cluster.name = json.string_or("name", name);
  if (const auto* groups = json.find("groups")) {
    if (!groups->is_array() || groups->empty()) json.reject("groups", "must be a list of node groups");
    for (std::size_t i = 0; i < groups->size(); ++i)
      cluster.groups.push_back(read_group(JsonFields((*groups)[i], fmt::format("cluster {}: groups[{}]", name, i))));
  } else {
    cluster.groups.push_back(read_group(json));
  }
  cluster.inter_node = read_link(json, "inter_node", cluster.nodes() > 1);
  cluster.price_per_hour = not_negative(json, "price_per_hour");
  return cluster;
}

nlohmann::ordered_json Cluster::to_json() const {
  nlohmann::ordered_json json = {{"name", name}, {"groups", nlohmann::ordered_json::array()}};
  for (const NodeGroup& g : groups) {
    nlohmann::ordered_json group = {
        {"nodes", g.nodes}, {"ranks_per_node", g.ranks_per_node}, {"device", write_device(g.device)}};
    if (g.intra_node.bytes_per_s > 0) group["intra_node"] = write_link(g.intra_node);
    json["groups"].push_back(group);
  }
  if (inter_node.bytes_per_s > 0) json["inter_node"] = write_link(inter_node);
  if (price_per_hour > 0) json["price_per_hour"] = price_per_hour;
  return json;
}

}  // namespace shoal
