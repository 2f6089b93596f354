#include "launch/inspect.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "planner/tensor_names.h"
#include "tests/unit/config_fixtures.h"
#include "tests/unit/safetensors_bytes.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

using nlohmann::json;

/// A model of two layers, one with experts, and an MTP layer.
json tiny_config() {
  json config = published_config("deepseek-r1");
  config.update({{"hidden_size", 8},
                 {"num_hidden_layers", 2},
                 {"vocab_size", 16},
                 {"intermediate_size", 12},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 2},
                 {"q_lora_rank", 6},
                 {"kv_lora_rank", 4},
                 {"qk_nope_head_dim", 4},
                 {"qk_rope_head_dim", 2},
                 {"v_head_dim", 4},
                 {"n_routed_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"n_group", 2},
                 {"topk_group", 1},
                 {"moe_intermediate_size", 4},
                 {"first_k_dense_replace", 1}});
  config.erase("quantization_config");
  return config;
}

/// A tensor on its way into a file; all types that tests give it have one byte an element.
struct Stored {
  std::string name, type;
  std::vector<std::int64_t> shape;
};

/// A folder that holds the tensors of a configuration, but those that `change` returns false for. `change` may also
/// alter a tensor.
void write_model(const ScratchFolder& folder, const json& config, const std::function<bool(Stored&)>& change) {
  folder.write("config.json", config.dump());
  std::string header;
  std::uint64_t end = 0;
  for (const ExpectedTensor& expected : expected_tensors(ModelConfig::from_file(folder.path()))) {
    if (expected.need == Need::with_fp8_weight) continue;
    Stored stored{expected.name, "F8_E4M3", expected.shape};
    if (!change(stored)) continue;
    std::uint64_t bytes = 1;
    for (const auto n : stored.shape) bytes *= static_cast<std::uint64_t>(n);
    header +=
        fmt::format("{}{}", header.empty() ? "" : ",",
                    entry(stored.name, stored.type, fmt::format("{}", fmt::join(stored.shape, ",")), end, end + bytes));
    end += bytes;
  }
  folder.write("model.safetensors", safetensors_file("{" + header + "}", end));
}

nlohmann::ordered_json inspected(const json& config, const std::function<bool(Stored&)>& change) {
  const ScratchFolder folder;
  write_model(folder, config, change);
  return inspection({folder.path().string(), true, false});
}

using Strings = std::vector<std::string>;
Strings strings(const nlohmann::ordered_json& list) { return list.get<Strings>(); }

auto count(const nlohmann::ordered_json& list, const std::string& name) {
  const Strings all = strings(list);
  return std::count(all.begin(), all.end(), name);
}

bool keep(Stored&) { return true; }

bool is_mtp(const Stored& t) { return t.name.starts_with("model.layers.2."); }

TEST(Inspect, AWholeModelIsWhole) {
  const auto report = inspected(tiny_config(), keep);
  EXPECT_TRUE(report["whole"].get<bool>());
  EXPECT_EQ(report["architecture"], "deepseek_v3");
  EXPECT_EQ(report["mtp_layers"], 1);
  EXPECT_EQ(report["kv_bytes_per_token"], (4 + 2) * 2 * 2);
  EXPECT_EQ(report["unexpected"].size(), 0u);
  EXPECT_EQ(strings(report["files"]), (Strings{"model.safetensors"}));
  EXPECT_EQ(report["parameters"]["by_part"]["routed experts"], 4 * 3 * 4 * 8);
  EXPECT_EQ(report["parameters"]["total"].get<int>() - report["parameters"]["active"].get<int>(),
            16 * 8 + 2 * 3 * 4 * 8)
      << "all but the embedding and the experts not chosen";
  EXPECT_EQ(report["bytes"], report["types"]["F8_E4M3"]["bytes"]);
}

TEST(Inspect, AModelWithoutItsMtpLayerIsWholeToo) {
  const auto report = inspected(tiny_config(), [](const Stored& t) { return !is_mtp(t); });
  EXPECT_TRUE(report["whole"].get<bool>());
  EXPECT_EQ(report["mtp_layers"], 0);
  EXPECT_EQ(report["mtp_layers_configured"], 1);
}

TEST(Inspect, APartOfAnMtpLayerIsNot) {
  const auto report =
      inspected(tiny_config(), [](const Stored& t) { return !is_mtp(t) || t.name.ends_with("enorm.weight"); });
  EXPECT_FALSE(report["whole"].get<bool>());
  EXPECT_GT(report["missing"].size(), 10u);
}

TEST(Inspect, NamesWhatIsMissingWrongAndUnexpected) {
  const auto report = inspected(tiny_config(), [](Stored& t) {
    if (t.name == "model.norm.weight") t.shape = {9};
    if (t.name == "lm_head.weight") t.type = "I8";
    if (t.name == "model.layers.1.mlp.experts.3.up_proj.weight") t.name = "model.layers.1.mlp.experts.4.up_proj.weight";
    return t.name != "model.layers.0.self_attn.kv_a_layernorm.weight" && !is_mtp(t);
  });
  EXPECT_FALSE(report["whole"].get<bool>());
  EXPECT_EQ(strings(report["missing"]),
            (Strings{"model.layers.0.self_attn.kv_a_layernorm.weight", "model.layers.1.mlp.experts.3.up_proj.weight"}));
  EXPECT_EQ(strings(report["wrong"]), (Strings{"model.norm.weight: [9], not [8]", "lm_head.weight: type I8"}));
  EXPECT_EQ(strings(report["unexpected"]), (Strings{"model.layers.1.mlp.experts.4.up_proj.weight"}));
}

TEST(Inspect, AQuantizedWeightNeedsItsFactors) {
  json config = tiny_config();
  config["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  const auto report = inspected(config, [](const Stored& t) { return t.name == "model.layers.0.mlp.up_proj.weight"; });
  EXPECT_EQ(count(report["missing"], "model.layers.0.mlp.up_proj.weight_scale_inv"), 1);
  EXPECT_EQ(count(report["missing"], "model.layers.0.mlp.gate_proj.weight_scale_inv"), 0);
}

int run_command(std::vector<std::string> words, std::string& out) {
  CLI::App root;
  InspectOptions options;
  const CLI::App* command = add_inspect(root, options);
  std::reverse(words.begin(), words.end());
  root.parse(words);
  EXPECT_TRUE(command->parsed());
  ::testing::internal::CaptureStdout();
  const int code = inspect(options);
  out = ::testing::internal::GetCapturedStdout();
  return code;
}

TEST(Inspect, PrintsTextAndJsonAndReturnsWhetherWhole) {
  const ScratchFolder folder;
  write_model(folder, tiny_config(), keep);
  std::string out;
  EXPECT_EQ(run_command({"inspect", folder.path().string()}, out), 0);
  EXPECT_PRED2(contains, out, "The checkpoint is whole.");
  EXPECT_PRED2(contains, out, "kv_lora_rank");
  EXPECT_EQ(run_command({"inspect", folder.path().string(), "--tensors"}, out), 0);
  EXPECT_PRED2(contains, out, "model.layers.1.mlp.experts.3.down_proj.weight");
  EXPECT_EQ(run_command({"inspect", "--json", "--tensors", folder.path().string()}, out), 0);
  EXPECT_EQ(json::parse(out)["tensors"][0]["name"], "lm_head.weight");

  write_model(folder, tiny_config(), [](const Stored& t) { return t.name.find("experts") == std::string::npos; });
  EXPECT_EQ(run_command({"inspect", folder.path().string()}, out), 1);
  EXPECT_PRED2(contains, out, "... and");
  EXPECT_PRED2(contains, out, "NOT whole");
}

}  // namespace
}  // namespace shoal
