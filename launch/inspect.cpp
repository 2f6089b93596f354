#include "launch/inspect.h"

#include <fmt/format.h>

#include <map>

#include "base/units.h"
#include "launch/report.h"
#include "planner/model_config.h"
#include "planner/tensor_names.h"
#include "runtime/checkpoint.h"
#include "runtime/completeness.h"
#include "runtime/model_source.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

Json dimensions(const ModelConfig& c) {
  Json d = {{"hidden_size", c.hidden_size},
            {"num_hidden_layers", c.num_hidden_layers},
            {"vocab_size", c.vocab_size},
            {"intermediate_size", c.intermediate_size},
            {"num_attention_heads", c.num_attention_heads},
            {"max_position_embeddings", c.max_position_embeddings}};
  if (c.is_mla()) {
    d["q_lora_rank"] = c.q_lora_rank;
    d["kv_lora_rank"] = c.kv_lora_rank;
    d["qk_nope_head_dim"] = c.qk_nope_head_dim;
    d["qk_rope_head_dim"] = c.qk_rope_head_dim;
    d["v_head_dim"] = c.v_head_dim;
  } else {
    d["num_key_value_heads"] = c.num_key_value_heads;
    d["head_dim"] = c.head_dim;
  }
  if (c.n_routed_experts > 0) {
    d["n_routed_experts"] = c.n_routed_experts;
    d["num_experts_per_tok"] = c.num_experts_per_tok;
    d["n_shared_experts"] = c.n_shared_experts;
    d["moe_intermediate_size"] = c.moe_intermediate_size;
    d["first_k_dense_replace"] = c.first_k_dense_replace;
    d["n_group"] = c.n_group;
    d["topk_group"] = c.topk_group;
  }
  return d;
}

Json parameters(const ModelConfig& config, const std::vector<ExpectedTensor>& expected) {
  const ParameterCounts counts = count_parameters(config, expected);
  Json by_part = Json::object();
  for (std::size_t i = 0; i < part_count; ++i) {
    const auto part = static_cast<Part>(i);
    if (counts[part] > 0) by_part[std::string(name_of(part))] = counts[part];
  }
  return {{"by_part", by_part}, {"total", counts.total}, {"active", counts.active}};
}

/// A few names of a long list: a folder that lacks a layer of R1 lacks 1500 tensors.
void print_names(const char* what, const Json& names) {
  constexpr std::size_t shown = 20;
  if (names.empty()) return;
  fmt::print("\n{} {}:\n", names.size(), what);
  for (std::size_t i = 0; i < std::min(names.size(), shown); ++i) fmt::print("  {}\n", names[i].get<std::string>());
  if (names.size() > shown) fmt::print("  ... and {} more (all with --json)\n", names.size() - shown);
}

void print_inspected(const Json& r) {
  fmt::print("{}: {}{}\n\n", r["model"].get<std::string>(), r["architecture"].get<std::string>(),
             r.contains("quantization") ? ", quantized with " + r["quantization"].get<std::string>() : "");
  for (const auto& [name, value] : r["dimensions"].items()) fmt::print("  {:<24} {:>12}\n", name, value.get<int>());
  fmt::print("  {:<24} {:>12} bytes in BF16\n", "KV cache per token", r["kv_bytes_per_token"].get<std::int64_t>());

  fmt::print("\nParameters\n");
  for (const auto& [name, value] : r["parameters"]["by_part"].items()) {
    fmt::print("  {:<24} {:>15}\n", name, human_count(value.get<std::int64_t>()));
  }
  fmt::print("  {:<24} {:>15}\n", "total without MTP", human_count(r["parameters"]["total"].get<std::int64_t>()));
  fmt::print("  {:<24} {:>15}\n", "active per token", human_count(r["parameters"]["active"].get<std::int64_t>()));

  fmt::print("\nTensors\n");
  for (const auto& [type, facts] : r["types"].items()) {
    fmt::print("  {:<24} {:>12} {:>12}\n", type, facts["tensors"].get<std::int64_t>(),
               human_bytes(facts["bytes"].get<std::uint64_t>()));
  }
  fmt::print("  in {} file{}, {}\n", r["files"].size(), r["files"].size() == 1 ? "" : "s",
             human_bytes(r["bytes"].get<std::uint64_t>()));
  if (r.contains("tensors")) {
    fmt::print("\n");
    for (const auto& t : r["tensors"]) {
      fmt::print("  {:<60} {:<8} {}\n", t["name"].get<std::string>(), t["type"].get<std::string>(), t["shape"].dump());
    }
  }

  const int configured = r["mtp_layers_configured"].get<int>(), stored = r["mtp_layers"].get<int>();
  if (stored < configured) {
    fmt::print("\nThe configuration names {} MTP layer(s), {} stored. Answers do not depend on them.\n", configured,
               stored);
  }
  print_names("missing", r["missing"]);
  print_names("of the wrong shape or type", r["wrong"]);
  print_names("that the architecture does not use", r["unexpected"]);
  fmt::print("\n{}\n", r["whole"].get<bool>() ? "The checkpoint is whole." : "The checkpoint is NOT whole.");
}

}  // namespace

CLI::App* add_inspect(CLI::App& root, InspectOptions& options) {
  CLI::App* app = root.add_subcommand("inspect", "Show what is in a checkpoint, and whether it is whole");
  app->add_option("model", options.model, "Hugging Face folder or GGUF file")->required();
  app->add_flag("--json", options.json, "Print JSON");
  app->add_flag("--tensors", options.tensors, "List every tensor with its type and shape");
  return app;
}

nlohmann::ordered_json inspection(const InspectOptions& options) {
  const ModelConfig config = read_model_config(options.model);
  const Checkpoint checkpoint = Checkpoint::open(options.model);
  const auto expected = expected_tensors(config);
  const Completeness state = compare(checkpoint, expected);

  Json report = {{"model", options.model}, {"architecture", config.model_type}};
  if (config.quantization) {
    const WeightQuantization& q = *config.quantization;
    std::string how = q.method;
    if (q.bits != 8) how += fmt::format(" of {} bits", q.bits);
    if (q.block_rows > 0) how += fmt::format(" in blocks of {} x {}", q.block_rows, q.block_cols);
    if (q.group_size > 0) how += fmt::format(" in groups of {}", q.group_size);
    report["quantization"] = how;
  }
  report["dimensions"] = dimensions(config);
  report["kv_bytes_per_token"] = std::int64_t{config.kv_width()} * config.num_hidden_layers * 2;
  report["parameters"] = parameters(config, expected);

  struct TypeFacts {
    std::int64_t tensors = 0;
    std::uint64_t bytes = 0;
  };
  std::map<std::string, TypeFacts> types;
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    ++types[tensor.type].tensors;
    types[tensor.type].bytes += tensor.bytes;
    bytes += tensor.bytes;
  }
  report["types"] = Json::object();
  for (const auto& [type, facts] : types) report["types"][type] = {{"tensors", facts.tensors}, {"bytes", facts.bytes}};
  report["files"] = Json::array();
  for (const auto& file : checkpoint.files()) report["files"].push_back(file.filename().string());
  report["bytes"] = bytes;
  report["mtp_layers"] = state.mtp_layers;
  report["mtp_layers_configured"] = config.num_nextn_predict_layers;
  report["whole"] = state.whole();
  report["missing"] = state.missing;
  report["wrong"] = state.wrong;
  report["unexpected"] = state.unexpected;
  if (options.tensors) {
    report["tensors"] = Json::array();
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      report["tensors"].push_back(
          {{"name", name},
           {"type", tensor.type},
           {"shape", tensor.shape},
           {"file", checkpoint.files()[static_cast<std::size_t>(tensor.file)].filename().string()},
           {"bytes", tensor.bytes}});
    }
  }
  return report;
}

int inspect(const InspectOptions& options) {
  const Json report = inspection(options);
  print_report(report, options.json, print_inspected);
  return report["whole"].get<bool>() ? 0 : 1;
}

}  // namespace shoal
