#include <algorithm>
#include <numeric>

#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

struct Routed {
  std::vector<std::int32_t> expert;
  std::vector<float> weight;
};

Routed route(Backend& backend, const std::vector<float>& logits, std::span<const float> bias,
             const RouterShape& shape) {
  const auto n = std::ssize(logits) / shape.n_experts;
  Routed r{std::vector<std::int32_t>(std::size_t(n * shape.top_k)), std::vector<float>(std::size_t(n * shape.top_k))};
  backend.route({logits.data(), n, shape.n_experts}, bias, shape, {r.expert.data(), n, shape.top_k},
                {r.weight.data(), n, shape.top_k});
  return r;
}

const RouterShape kV3{256, 8, 8, 4, Scoring::sigmoid, GroupScore::best_two_sum, true, 2.5f};
const RouterShape kV2{160, 6, 8, 3, Scoring::softmax, GroupScore::best, false, 16.0f};
const RouterShape kV2Lite{64, 6, 1, 1, Scoring::softmax, GroupScore::none, false, 1.0f};

class RouterTest : public EveryIsa {};

TEST_P(RouterTest, MatchesReference) {
  Random random;
  const auto tested = backend(3), reference = make_reference_backend();
  for (const RouterShape& shape : {kV3, kV2, kV2Lite, RouterShape{5, 5},
                                   RouterShape{6, 2, 3, 1, Scoring::sigmoid, GroupScore::best_two_sum, true, 1.0f}}) {
    const auto logits = random.floats(300 * shape.n_experts, 2.0f), bias = random.floats(shape.n_experts, 0.1f);
    for (const bool biased : {false, true}) {
      const std::span<const float> b = biased ? std::span<const float>(bias) : std::span<const float>();
      const Routed actual = route(*tested, logits, b, shape), expected = route(*reference, logits, b, shape);
      EXPECT_EQ(actual.expert, expected.expert);
      expect_near(actual.weight, expected.weight, 1e-6, "weights");
    }
  }
}

TEST_P(RouterTest, BiasMovesTheChoiceButNotTheWeights) {
  const auto tested = backend(1);
  const RouterShape shape{4, 2, 1, 1, Scoring::sigmoid, GroupScore::none, false, 1.0f};
  const std::vector<float> logits{0.0f, 1.0f, 2.0f, 3.0f}, bias{10.0f, 0.0f, 0.0f, 0.0f};
  const Routed r = route(*tested, logits, bias, shape);
  EXPECT_EQ(r.expert, (std::vector<std::int32_t>{0, 3}));
  EXPECT_FLOAT_EQ(r.weight[0], 0.5f);
  EXPECT_FLOAT_EQ(r.weight[1], 1.0f / (1.0f + std::exp(-3.0f)));
}

TEST_P(RouterTest, ExpertsOutsideTheKeptGroupsAreNotChosen) {
  const auto tested = backend(1);
  // Group 0 has the best expert, group 1 the two best together.
  const std::vector<float> logits{5.0f, -5.0f, 3.0f, 3.0f};
  const RouterShape v3{4, 2, 2, 1, Scoring::sigmoid, GroupScore::best_two_sum, true, 1.0f};
  EXPECT_EQ(route(*tested, logits, {}, v3).expert, (std::vector<std::int32_t>{2, 3}));
  const RouterShape v2{4, 2, 2, 1, Scoring::softmax, GroupScore::best, false, 1.0f};
  EXPECT_EQ(route(*tested, logits, {}, v2).expert, (std::vector<std::int32_t>{0, 1}));
  // With every score driven below zero by the bias, a group that is out must stay out.
  const std::vector<float> bias(4, -2.0f);
  EXPECT_EQ(route(*tested, logits, bias, v3).expert, (std::vector<std::int32_t>{2, 3}));
}

TEST_P(RouterTest, TiesGoToTheLowerId) {
  const auto tested = backend(1);
  RouterShape shape = kV3;
  shape.n_experts = 16;
  shape.n_group = 4;
  shape.topk_group = 2;
  shape.top_k = 4;
  const Routed r = route(*tested, std::vector<float>(16, 0.5f), {}, shape);
  EXPECT_EQ(r.expert, (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_FLOAT_EQ(r.weight[2], 2.5f / 4);
}

TEST_P(RouterTest, BrokenLogitsStillNameExperts) {
  const auto tested = backend(1);
  for (const RouterShape& shape : {kV3, kV2, kV2Lite}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      const Routed r = route(*tested, std::vector<float>(std::size_t(shape.n_experts), bad), {}, shape);
      for (std::size_t i = 0; i < r.expert.size(); ++i) {
        EXPECT_GE(r.expert[i], i == 0 ? 0 : r.expert[i - 1] + 1);
        EXPECT_LT(r.expert[i], shape.n_experts);
      }
    }
    EXPECT_TRUE(route(*tested, {}, {}, shape).expert.empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, RouterTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
