#include <fcntl.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "planner/memory.h"
#include "runtime/weights.h"

// Loading must cost each rank its own share of memory and little more: 700 GB do not fit twice.
namespace shoal {
namespace {

namespace fs = std::filesystem;

/// How linear weights are stored.
struct Form {
  const char* name;
  nlohmann::json quantization;  // null: BF16
};

/// A checkpoint of zeros with R1's names: a sparse file, so it costs no disk.
fs::path write_model(const fs::path& dir, const Form& form) {
  const int hidden = 1024, layers = 2, experts = 16, intermediate = 2048, heads = 8, vocab = 8192;
  nlohmann::json config = {{"model_type", "deepseek_v3"},
                           {"hidden_size", hidden},
                           {"num_hidden_layers", layers},
                           {"vocab_size", vocab},
                           {"intermediate_size", intermediate},
                           {"moe_intermediate_size", intermediate},
                           {"num_attention_heads", heads},
                           {"num_key_value_heads", heads},
                           {"q_lora_rank", 256},
                           {"kv_lora_rank", 256},
                           {"qk_nope_head_dim", 64},
                           {"qk_rope_head_dim", 32},
                           {"v_head_dim", 64},
                           {"n_routed_experts", experts},
                           {"n_shared_experts", 1},
                           {"num_experts_per_tok", 2},
                           {"n_group", 4},
                           {"topk_group", 2},
                           {"first_k_dense_replace", 1},
                           {"norm_topk_prob", true},
                           {"scoring_func", "sigmoid"},
                           {"topk_method", "noaux_tc"},
                           {"routed_scaling_factor", 2.5},
                           {"max_position_embeddings", 1024},
                           {"rope_theta", 10000.0},
                           {"rms_norm_eps", 1e-6},
                           {"tie_word_embeddings", false},
                           {"hidden_act", "silu"},
                           {"eos_token_id", 1}};
  const std::string method = form.quantization.is_null() ? "" : form.quantization["quant_method"];
  if (!method.empty()) config["quantization_config"] = form.quantization;
  std::ofstream(dir / "config.json") << config;

  nlohmann::json header;
  std::uint64_t offset = 0;
  std::vector<std::pair<std::uint64_t, int>> orders;  // where, of how many columns
  const auto put = [&](const std::string& name, const char* type, std::vector<int> shape) {
    std::uint64_t bytes = type == std::string("I8") ? 1 : type[1] == '3' ? 4 : 2;
    for (const int n : shape) bytes *= static_cast<std::uint64_t>(n);
    header[name] = {{"dtype", type}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  };
  const auto add = [&](const std::string& name, std::vector<int> shape) {
    if (method.empty() || name.find("_proj") == std::string::npos) return put(name, "BF16", shape);
    const std::string p = name.substr(0, name.size() - 6);
    const int rows = shape[0], cols = shape[1], groups = cols / 128;
    if (method == "w8a8_int8") {
      put(name, "I8", shape);
      put(p + "weight_scale", "F32", {rows, 1});
    } else if (method == "blockwise_int8") {
      put(name, "I8", shape);
      put(p + "weight_scale_inv", "F32", {(rows + 127) / 128, groups});
    } else if (method == "compressed-tensors") {
      put(p + "weight_packed", "I32", {rows, cols / 8});
      put(p + "weight_scale", "BF16", {rows, groups});
    } else {
      put(p + "qweight", "I32", method == "awq" ? std::vector{cols, rows / 8} : std::vector{cols / 8, rows});
      put(p + "qzeros", "I32", {groups, rows / 8});
      put(p + "scales", "F16", {groups, rows});
      if (form.quantization.value("desc_act", false)) {
        orders.emplace_back(offset, cols);
        put(p + "g_idx", "I32", {cols});
      }
    }
  };
  const auto ffn = [&](const std::string& p) {
    add(p + "gate_proj.weight", {intermediate, hidden});
    add(p + "up_proj.weight", {intermediate, hidden});
    add(p + "down_proj.weight", {hidden, intermediate});
  };
  add("model.embed_tokens.weight", {vocab, hidden});
  add("lm_head.weight", {vocab, hidden});
  add("model.norm.weight", {hidden});
  for (int i = 0; i < layers; ++i) {
    const std::string p = "model.layers." + std::to_string(i) + ".", a = p + "self_attn.";
    add(p + "input_layernorm.weight", {hidden});
    add(p + "post_attention_layernorm.weight", {hidden});
    add(a + "q_a_proj.weight", {256, hidden});
    add(a + "q_a_layernorm.weight", {256});
    add(a + "q_b_proj.weight", {heads * 96, 256});
    add(a + "kv_a_proj_with_mqa.weight", {256 + 32, hidden});
    add(a + "kv_a_layernorm.weight", {256});
    add(a + "kv_b_proj.weight", {heads * 128, 256});
    add(a + "o_proj.weight", {hidden, heads * 64});
    if (i == 0) {
      ffn(p + "mlp.");
      continue;
    }
    add(p + "mlp.gate.weight", {experts, hidden});
    add(p + "mlp.gate.e_score_correction_bias", {experts});
    ffn(p + "mlp.shared_experts.");
    for (int e = 0; e < experts; ++e) ffn(p + "mlp.experts." + std::to_string(e) + ".");
  }
  const std::string text = header.dump();
  const fs::path file = dir / "model.safetensors";
  const std::uint64_t length = text.size();
  std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(&length), 8) << text;
  fs::resize_file(file, 8 + length + offset);
  std::fstream data(file, std::ios::binary | std::ios::in | std::ios::out);
  for (const auto& [at, cols] : orders) {
    std::vector<std::int32_t> group;
    for (int c = 0; c < cols; ++c) group.push_back(c % (cols / 128));  // a group's columns lie far apart
    data.seekp(static_cast<std::streamoff>(8 + length + at));
    data.write(reinterpret_cast<const char*>(group.data()), std::ssize(group) * 4);
  }
  return dir;
}

/// Peak resident bytes of this process so far.
std::uint64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

/// Loads one rank's share in a process of its own; its exit code says whether the peak stayed below the bound.
int load_in_child(const fs::path& model, int ranks, int rank) {
  const pid_t child = fork();
  if (child != 0) {
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
  }
  try {
    const ModelConfig config = ModelConfig::from_file(model);
    const Checkpoint checkpoint = Checkpoint::open(model);
    // What tests before this one used and gave back would hide what is used now.
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak is counted from here
    const std::uint64_t before = peak_bytes();
    const ModelWeights weights = load_weights(config, checkpoint, place_evenly(config, ranks), rank, {.threads = 4});
    const std::uint64_t grown = peak_bytes() - before, allowed = weights.bytes + weights.bytes / 50 + (64u << 20);
    // A rank alone holds the file: with integers, a few scales are repeated and the key heads of kv_b_proj expanded.
    const auto file = fs::file_size(model / "model.safetensors");
    const bool as_stored = ranks > 1 || weights.bytes < file + file / 10;
    if (grown > allowed || grown < weights.bytes / 2 || !as_stored) {
      std::fprintf(stderr, "rank %d of %d: file %lu, share %lu, peak grew by %lu\n", rank, ranks, file, weights.bytes,
                   grown);
      _exit(1);
    }
    _exit(0);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    _exit(2);
  }
}

class LoadMemory : public testing::TestWithParam<Form> {};

TEST_P(LoadMemory, PeakIsTheShareAndLittleMore) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer's own memory would be counted";
#endif
  const fs::path dir = fs::path(testing::TempDir()) / "shoal-load-memory" / GetParam().name;
  fs::create_directories(dir);
  const fs::path model = write_model(dir, GetParam());
  for (const auto& [ranks, rank] : {std::pair{1, 0}, {2, 1}, {4, 3}})
    EXPECT_EQ(load_in_child(model, ranks, rank), 0) << "rank " << rank << " of " << ranks;
  fs::remove_all(dir);
}

const nlohmann::json kFour = {{"bits", 4}, {"group_size", 128}};
nlohmann::json with(nlohmann::json fields, const nlohmann::json& others) {
  fields.update(others);
  return fields;
}
INSTANTIATE_TEST_SUITE_P(
    Forms, LoadMemory,
    testing::Values(Form{"bf16", nullptr},
                    Form{"int8", {{"quant_method", "w8a8_int8"}, {"activation_scheme", "dynamic"}}},
                    Form{"int8_block", {{"quant_method", "blockwise_int8"}, {"weight_block_size", {128, 128}}}},
                    Form{"awq", with(kFour, {{"quant_method", "awq"}, {"version", "gemm"}, {"zero_point", true}})},
                    Form{"gptq", with(kFour, {{"quant_method", "gptq"}, {"desc_act", false}})},
                    Form{"compressed",
                         {{"quant_method", "compressed-tensors"},
                          {"format", "pack-quantized"},
                          {"config_groups",
                           {{"group_0",
                             {{"targets", {"Linear"}},
                              {"weights",
                               {{"num_bits", 4},
                                {"type", "int"},
                                {"symmetric", true},
                                {"strategy", "group"},
                                {"group_size", 128}}}}}}}}}),
    [](const auto& i) { return i.param.name; });

/// What the planner counts for a rank, and what it then holds, where experts are cut. With act-order slices of down
/// projections are floats.
TEST(LoadMemory, SlicesTakeWhatThePlannerCounts) {
  for (const bool act_order : {false, true}) {
    const fs::path dir = fs::path(testing::TempDir()) / "shoal-load-slices";
    fs::create_directories(dir);
    write_model(dir, {"gptq", with(kFour, {{"quant_method", "gptq"}, {"desc_act", act_order}})});
    const ModelConfig config = ModelConfig::from_file(dir);
    const Checkpoint checkpoint = Checkpoint::open(dir);
    const HeldWeights counted(config, Precision::of_config(config), Device::Kind::cpu);
    for (const int ranks : {1, 2, 4}) {
      const ModelWeights held = load_weights(config, checkpoint, place_slices(config, ranks), 0, {.threads = 2});
      double planned = counted.dense_bytes(1, 0);
      for (int layer = 0; layer < config.num_hidden_layers; ++layer)
        planned += counted.slice_bytes(layer, ranks, 0) * (config.is_moe_layer(layer) ? config.n_routed_experts : 0);
      EXPECT_NEAR(planned, static_cast<double>(held.bytes), 0.01 * static_cast<double>(held.bytes))
          << ranks << " ranks" << (act_order ? ", act-order" : "");
    }
    fs::remove_all(dir);
  }
}

}  // namespace
}  // namespace shoal
