#include "launch/plan_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/units.h"
#include "planner/cards.h"
#include "planner/plan.h"

namespace shoal {
namespace {

constexpr int contexts[] = {4096, 8192, 32768, 65536, 163840};
constexpr int concurrencies[] = {1, 4, 16, 64};
constexpr int most_nodes_tried = 64;

/// A bundled cluster of some number of nodes.
struct Size {
  std::string name;
  Cluster cluster;
  double bytes = 0;
};

/// Ascending by memory.
std::vector<Size> cluster_sizes() {
  std::vector<Size> sizes;
  for (const Card& card : cluster_cards())
    for (int nodes = 1; nodes <= most_nodes_tried; nodes *= 2) {
      Size size{std::string(card.name), find_cluster(std::string(card.name))};
      size.cluster.groups[0].nodes = nodes;
      size.bytes = size.cluster.groups[0].device.memory_bytes * size.cluster.ranks();
      if (nodes > 1) size.name = fmt::format("{} x {}", nodes, card.name);
      sizes.push_back(std::move(size));
    }
  std::sort(sizes.begin(), sizes.end(), [](const Size& a, const Size& b) { return a.bytes < b.bytes; });
  return sizes;
}

std::vector<std::string> usual_precisions(const ModelConfig& config) {
  std::vector<std::string> names = {"bf16", "fp8", "int8", "Q4_K_M"};
  if (config.quantization) names.insert(names.end(), {"UD-Q2_K_XL", "UD-IQ1_S"});
  return names;
}

void add_rows(std::string& text, const std::string& model, const std::string& precision,
              const std::vector<Size>& sizes) {
  const ModelConfig config = find_model(model);
  PlanRequest request{.model = model, .config = config, .precision = Precision::from_name(precision)};
  // What ranks hold differs by the kind of device alone.
  const HeldWeights on_cpu(config, request.precision, Device::Kind::cpu),
      on_gpu(config, request.precision, Device::Kind::gpu);
  const auto weights = static_cast<double>(checkpoint_bytes(config, request.precision, false));
  for (const int context : contexts) {
    if (context > config.max_position_embeddings) continue;
    text += fmt::format("| {} | {} | {} | {}K |", model, precision, human_bytes(weights), context / 1024);
    for (const int concurrency : concurrencies) {
      request.workload = {.context = context, .concurrency = concurrency};
      const double kv = kv_bytes_per_token(config, KvType::bf16) * context * concurrency;
      const double least = weights + kv;
      const Size* smallest = nullptr;
      for (const Size& size : sizes) {
        if (size.bytes < least && !size.cluster.groups[0].device.companion) continue;
        request.cluster = size.cluster;
        const bool gpu = size.cluster.groups[0].device.kind == Device::Kind::gpu;
        request.workload.max_batched_tokens = default_step_tokens(gpu);
        if (!fits(request, gpu ? on_gpu : on_cpu)) continue;
        smallest = &size;
        break;
      }
      text += fmt::format(" {}: {} |", human_bytes(least), smallest ? smallest->name : "none");
    }
    text += "\n";
  }
}

}  // namespace

std::string plan_table(const std::vector<std::string>& models, const std::vector<std::string>& precisions) {
  std::vector<std::string> names = models;
  if (names.empty())
    for (const Card& card : model_cards()) names.emplace_back(card.name);
  const std::vector<Size> sizes = cluster_sizes();
  std::string text =
      "Weights and KV cache (BF16) by context and concurrent sequences, and the smallest bundled cluster\n\n";
  text += "| model | precision | weights | context |";
  for (const int n : concurrencies) text += fmt::format(" {} at once |", n);
  text += "\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
  for (const std::string& name : names)
    for (const std::string& precision : precisions.empty() ? usual_precisions(find_model(name)) : precisions)
      add_rows(text, name, precision, sizes);
  return text;
}

}  // namespace shoal
