#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "runtime/model_source.h"
#include "runtime/planned_job.h"

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
    return start_memory(config, options, place_evenly(config, 2), 0, device, share_bytes);
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

}  // namespace
}  // namespace shoal
