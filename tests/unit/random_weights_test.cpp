#include "runtime/random_weights.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "base/error.h"
#include "planner/placement.h"
#include "runtime/weights.h"

namespace shoal {
namespace {

TEST(RandomWeights, HaveTheShapesAndTypesAskedFor) {
  const ModelConfig config = random_model_config("deepseek-v2-lite", "Q4_K_M", 2);
  EXPECT_EQ(config.num_hidden_layers, 2);
  const Checkpoint checkpoint = random_checkpoint(config, "Q4_K_M");
  const TensorInfo& up =
      checkpoint.require("model.layers.1.mlp.experts.3.up_proj.weight", std::array<std::int64_t, 2>{1408, 2048});
  EXPECT_EQ(up.type, "Q4_K");
  const std::vector<float> values = checkpoint.read_floats(up);
  double sum = 0, squares = 0;
  for (const float v : values) sum += v, squares += double{v} * v;
  const auto n = static_cast<double>(values.size());
  EXPECT_NEAR(sum / n, 0, 1e-3);
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 2e-3);

  // Of two experts, rows differ; read again, they are the same, from any byte on.
  const TensorInfo& other = *checkpoint.find("model.layers.1.mlp.experts.4.up_proj.weight");
  std::array<std::byte, 144> a, b, c;
  checkpoint.read(up, 1440, a);
  checkpoint.read(up, 1440, b);
  checkpoint.read(other, 1440, c);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  std::array<std::byte, 100> part;
  checkpoint.read(up, 1484, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), a.begin() + 44));
}

TEST(RandomWeights, AreLoadedLikeAnyOthers) {
  for (const char* precision : {"bf16", "fp8", "Q8_0"}) {
    const ModelConfig config = random_model_config("deepseek-v2-lite", precision, 1);
    const ModelWeights weights =
        load_weights(config, random_checkpoint(config, precision), place_evenly(config, 1), 0, {});
    EXPECT_EQ(weights.layers.size(), 1u);
    EXPECT_FALSE(weights.layers[0].dense.empty());
  }
}

TEST(RandomWeights, RefuseWhatTheyCannotBe) {
  EXPECT_THROW(random_model_config("deepseek-v2-lite", "int4", 1), Error);
  EXPECT_THROW(random_model_config("deepseek-v2-lite", "bf16", 1000), Error);
  EXPECT_THROW(random_model_config("no-such-model", "bf16", 1), Error);
}

}  // namespace
}  // namespace shoal
