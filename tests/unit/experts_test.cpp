#include <algorithm>

#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

constexpr double kExpertTolerance = 2e-5;

struct Layer {
  std::vector<FeedForward> experts;
  std::int64_t hidden;
};

Layer random_layer(Random& random, DType type, int n_experts, std::int64_t hidden, std::int64_t intermediate) {
  Layer layer{{}, hidden};
  for (int e = 0; e < n_experts; ++e) {
    layer.experts.push_back({random_matrix(random, type, intermediate, hidden),
                             random_matrix(random, type, intermediate, hidden),
                             random_matrix(random, type, hidden, intermediate)});
  }
  return layer;
}

/// Tokens that each go through a random set of experts (some through none).
struct Tokens {
  Tokens(Random& random, std::int64_t n, const Layer& layer, int most_experts)
      : hidden(layer.hidden), x(random.floats(n * hidden, 0.1f)), out(x.size(), NAN) {
    first.push_back(0);
    for (std::int64_t t = 0; t < n; ++t) {
      const int wanted = random.whole(0, most_experts);
      for (std::size_t e = 0; e < layer.experts.size(); ++e) {
        const auto left = static_cast<int>(layer.experts.size() - e);
        const int missing = wanted - static_cast<int>(expert.size() - std::size_t(first.back()));
        if (missing > 0 && random.whole(1, left) <= missing) {
          expert.push_back(static_cast<std::int32_t>(e));
          weight.push_back(std::abs(random.normal()));
        }
      }
      first.push_back(static_cast<std::int32_t>(expert.size()));
    }
  }

  /// Tokens [begin, begin + count) as a batch.
  ExpertBatch batch(std::size_t begin, std::size_t count) {
    ExpertBatch b;
    for (std::size_t t = begin; t < begin + count; ++t) {
      b.rows.push_back(x.data() + std::int64_t(t) * hidden);
      b.out.push_back(out.data() + std::int64_t(t) * hidden);
    }
    for (std::size_t t = begin; t <= begin + count; ++t) b.first.push_back(first[t] - first[begin]);
    b.expert.assign(expert.begin() + first[begin], expert.begin() + first[begin + count]);
    b.weight.assign(weight.begin() + first[begin], weight.begin() + first[begin + count]);
    return b;
  }

  std::int64_t hidden;
  std::vector<float> x, out;
  std::vector<std::int32_t> first, expert;
  std::vector<float> weight;
};

class ExpertsTest : public EveryIsa {};

TEST_P(ExpertsTest, MatchReference) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(2, compute), reference = make_reference_backend(compute);
    Random random;
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::f8_e4m3}) {
      const Layer layer = random_layer(random, type, 6, 130, 72);
      for (const std::int64_t n : {0, 1, 4, 50}) {
        Tokens tokens(random, n, layer, 4);
        tested->experts(tokens.batch(0, std::size_t(n)), layer.experts);
        const std::vector<float> actual = tokens.out;
        reference->experts(tokens.batch(0, std::size_t(n)), layer.experts);
        // The hidden layer is rounded to BF16 again where activations are: a sum that falls on the other side of a
        // boundary moves by 2^-9 of one of its 72 terms.
        expect_near(actual, tokens.out, compute == Compute::bf16 ? 2e-3 : kExpertTolerance, std::string(name_of(type)));
      }
    }
  }
}

TEST_P(ExpertsTest, ATokenDoesNotDependOnItsNeighboursNorOnThreads) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto one = backend(1, compute), two = backend(2, compute), three = backend(3, compute);
    Random random(2);
    for (int round = 0; round < rounds(4); ++round) {
      for (const DType type : {DType::bf16, DType::f8_e4m3, DType::f32}) {
        const Layer layer = random_layer(random, type, 8, random.whole(10, 300), random.whole(10, 200));
        const auto n = static_cast<std::size_t>(random.whole(2, 60));
        Tokens tokens(random, std::int64_t(n), layer, 5);
        for (std::size_t t = 0; t < n; ++t) one->experts(tokens.batch(t, 1), layer.experts);
        const std::vector<float> alone = tokens.out;
        for (const auto* b : {&one, &two, &three}) {
          std::fill(tokens.out.begin(), tokens.out.end(), NAN);
          (*b)->experts(tokens.batch(0, n), layer.experts);
          EXPECT_TRUE(same_bits(alone.data(), tokens.out.data(), std::ssize(alone))) << name_of(type);
        }
      }
    }
  }
}

TEST_P(ExpertsTest, FeedForwardMatchesReference) {
  const auto tested = backend(3), reference = make_reference_backend();
  Random random(3);
  for (const DType type : {DType::f32, DType::bf16, DType::f8_e4m3}) {
    const Layer layer = random_layer(random, type, 1, 100, 260);
    for (const std::int64_t n : {0, 1, 3, 230}) {
      const auto x = random.floats(n * 100, 0.1f);
      std::vector<float> actual(x.size()), expected(x.size());
      tested->feed_forward({x.data(), n, 100}, layer.experts[0], {actual.data(), n, 100});
      reference->feed_forward({x.data(), n, 100}, layer.experts[0], {expected.data(), n, 100});
      expect_near(actual, expected, kExpertTolerance, std::string(name_of(type)));
    }
  }
}

TEST_P(ExpertsTest, MatricesOfOneExpertMayDifferInType) {
  for (const Compute compute : {Compute::f32, Compute::bf16}) {
    const auto tested = backend(2, compute), reference = make_reference_backend(compute);
    Random random(4);
    Layer layer{{}, 64};
    layer.experts.push_back({random_matrix(random, DType::bf16, 48, 64), random_matrix(random, DType::f32, 48, 64),
                             random_matrix(random, DType::f8_e4m3, 64, 48)});
    layer.experts.push_back({random_matrix(random, DType::f16, 40, 64), random_matrix(random, DType::f8_e4m3, 40, 64),
                             random_matrix(random, DType::bf16, 64, 40)});
    Tokens tokens(random, 20, layer, 2);
    tested->experts(tokens.batch(0, 20), layer.experts);
    const std::vector<float> actual = tokens.out;
    reference->experts(tokens.batch(0, 20), layer.experts);
    expect_near(actual, tokens.out, compute == Compute::bf16 ? 2e-3 : kExpertTolerance, "mixed types");
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, ExpertsTest, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
