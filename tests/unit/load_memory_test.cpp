#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "runtime/weights.h"

// Loading must cost each rank its own share of memory and little more: 700 GB do not fit twice.
namespace shoal {
namespace {

namespace fs = std::filesystem;

/// A BF16 checkpoint of zeros with R1's names: a sparse file, so it costs no disk.
fs::path write_model(const fs::path& dir) {
  const int hidden = 1024, layers = 2, experts = 16, intermediate = 2048, heads = 8, vocab = 8192;
  const nlohmann::json config = {{"model_type", "deepseek_v3"},
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
  std::ofstream(dir / "config.json") << config;

  nlohmann::json header;
  std::uint64_t offset = 0;
  const auto add = [&](const std::string& name, std::vector<int> shape) {
    std::uint64_t bytes = 2;
    for (const int n : shape) bytes *= static_cast<std::uint64_t>(n);
    header[name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
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
    const std::uint64_t before = peak_bytes();
    const ModelWeights weights = load_weights(config, checkpoint, place_evenly(config, ranks), rank, {.threads = 4});
    const std::uint64_t grown = peak_bytes() - before, allowed = weights.bytes + weights.bytes / 50 + (64u << 20);
    if (grown > allowed || grown < weights.bytes / 2) {
      std::fprintf(stderr, "rank %d of %d: share %lu, peak grew by %lu\n", rank, ranks, weights.bytes, grown);
      _exit(1);
    }
    _exit(0);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    _exit(2);
  }
}

TEST(LoadMemory, PeakIsTheShareAndLittleMore) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer's own memory would be counted";
#endif
  const fs::path dir = fs::path(testing::TempDir()) / "shoal-load-memory";
  fs::create_directories(dir);
  const fs::path model = write_model(dir);
  for (const auto& [ranks, rank] : {std::pair{1, 0}, {2, 1}, {4, 3}})
    EXPECT_EQ(load_in_child(model, ranks, rank), 0) << "rank " << rank << " of " << ranks;
  fs::remove_all(dir);
}

}  // namespace
}  // namespace shoal
