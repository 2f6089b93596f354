#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "base/error.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"
#include "runtime/rank_model.h"

/// What a rank that starts is told to hold: of its host, or of the GPU it computes on.
namespace shoal {
namespace {

using ::testing::HasSubstr;

struct Start {
  JobOptions options;
  ModelConfig config;
  Start() {
    options.model = SHOAL_SOURCE_DIR "/launch/demo-model";
    options.max_batched_tokens = 512;
    config = read_model_config(options.model);
  }
  RankMemory memory(Device::Kind device, std::uint64_t share_bytes) const {
    return start_memory(config, options, place_evenly(config, 2), 0, 1, device, share_bytes);
  }
  std::string refusal(Device::Kind device) const {
    try {
      memory(device, 1000);
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_code, ExitCode::does_not_fit);
      return e.what();
    }
    return "";
  }
};

TEST(StartMemory, IsThatOfTheDeviceThatComputes) {
  constexpr std::uint64_t kPlenty = std::uint64_t{64} << 30;
  const Start start;
  const RankMemory host = start.memory(Device::Kind::cpu, kPlenty), gpu = start.memory(Device::Kind::gpu, kPlenty);
  // A context and the libraries of a GPU take gigabytes; matrices lie there as they are, not in panels.
  EXPECT_GT(gpu.reserve, 1e9);
  EXPECT_LT(host.reserve, 1e8);
  EXPECT_LE(gpu.weights, host.weights);
  EXPECT_GT(gpu.activations, 0);
  EXPECT_GT(gpu.exchange, 0);
}

TEST(StartMemory, RefusalsNameTheMemoryThatIsShort) {
  const Start start;
  EXPECT_THAT(start.refusal(Device::Kind::cpu), HasSubstr("of this host's free memory"));
  EXPECT_THAT(start.refusal(Device::Kind::gpu), HasSubstr("of this GPU's free memory"));
}

/// Where a lost rank's experts need the room, the KV cache gives way, one of an asked size too; else it stays.
TEST(StartMemory, TheCacheGivesWayToLostExperts) {
  Start start;
  JobOptions& options = start.options;
  options.device = "cpu";
  options.threads = 1;
  options.quiet = true;
  options.max_model_len = 512;
  const Placement before = place_evenly(start.config, 3), after = place_among(start.config, before, std::array{0, 2});
  const RankMemory least = start_memory(start.config, options, after, 0, 1, Device::Kind::cpu, std::uint64_t{1} << 40);
  const auto enough = static_cast<std::uint64_t>(least.total() * 1.05);
  for (const double asked : {0.0, 0.3}) {
    options.kv_cache_gb = asked;
    for (const bool room : {true, false}) {
      const std::uint64_t plenty = std::uint64_t{4} << 30;
      RankModel loaded = load_rank_model(start.config, job_checkpoint(options), options, {}, 0, before,
                                         {.backend = make_cpu_backend({.threads = 1}), .share_bytes = plenty});
      const int pages = loaded.cache->pages();
      const std::size_t experts = loaded.weights.layers.back().moe.experts.size();
      EXPECT_TRUE(outlives_one(start.config, options, before, 0, room ? plenty : enough));
      EXPECT_FALSE(outlives_one(start.config, options, before, 0, enough / 4));
      const bool kept = regroup_rank_model(loaded, start.config, job_checkpoint(options), options, {}, 0, 1, after,
                                           room ? plenty : enough);
      EXPECT_EQ(kept, room);
      if (room) {
        EXPECT_EQ(loaded.cache->pages(), pages);
      } else {
        EXPECT_LT(loaded.cache->pages(), pages);
        EXPECT_GE(loaded.cache->pages(), 512 / kv_page_tokens);
      }
      EXPECT_GT(loaded.weights.layers.back().moe.experts.size(), experts);
    }
  }
}

}  // namespace
}  // namespace shoal
