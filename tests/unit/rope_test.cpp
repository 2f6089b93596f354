#include <gtest/gtest.h>

#include <cmath>

#include "tests/unit/config_fixtures.h"

namespace shoal {
namespace {

using nlohmann::json;

/// torch and the C library may round a power differently in the last place.
constexpr float tolerance = 5e-7f;

TEST(Rope, FrequenciesAndScaleAreThoseOfTransformers) {
  const json cases = config_fixtures();
  for (const json& c : cases) {
    for (const char* spelling : {"published", "saved"}) {
      SCOPED_TRACE(c["name"].get<std::string>() + ", " + spelling);
      const ModelConfig config = read_config(c[spelling]);
      const RopeFrequencies rope = rope_frequencies(config);
      const auto expected = c["expected"]["inv_freq"].get<std::vector<float>>();
      ASSERT_EQ(rope.inv_freq.size(), expected.size());
      for (std::size_t i = 0; i < expected.size(); ++i) {
        EXPECT_NEAR(rope.inv_freq[i] / expected[i], 1, tolerance) << "frequency " << i;
      }
      EXPECT_NEAR(rope.magnitude, c["expected"]["magnitude"].get<float>(), tolerance);
      EXPECT_NEAR(attention_scale(config) / c["expected"]["attention_scale"].get<float>(), 1, tolerance);
    }
  }
}

ModelConfig tiny() {
  ModelConfig config;
  config.architecture = Architecture::llama;
  config.head_dim = 8;
  config.num_key_value_heads = 1;
  config.max_position_embeddings = 64;
  return config;
}

TEST(Rope, YarnWithAFactorOfOneChangesNothing) {
  ModelConfig config = tiny();
  const auto plain = rope_frequencies(config);
  config.rope_scaling.type = RopeScaling::Type::yarn;
  config.rope_scaling.original_max_position_embeddings = 64;
  const auto scaled = rope_frequencies(config);
  for (std::size_t i = 0; i < plain.inv_freq.size(); ++i)
    EXPECT_NEAR(scaled.inv_freq[i] / plain.inv_freq[i], 1, tolerance);
  EXPECT_EQ(scaled.magnitude, 1);
}

TEST(Rope, YarnCopesWithARampOfNoWidth) {
  ModelConfig config = tiny();
  config.rope_scaling.type = RopeScaling::Type::yarn;
  config.rope_scaling.factor = 4;
  config.rope_scaling.original_max_position_embeddings = 1;  // every dimension turns less than once
  for (const float f : rope_frequencies(config).inv_freq) EXPECT_TRUE(std::isfinite(f));
}

}  // namespace
}  // namespace shoal
