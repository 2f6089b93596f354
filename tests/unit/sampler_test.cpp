#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "runtime/philox.h"

namespace shoal {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> any_logits(std::size_t vocab, unsigned seed, float spread = 2) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

/// The distribution that sample() should draw from, by the book: sort everything, long double.
std::vector<double> exact(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  const long double max = logits[order[0]];
  std::vector<long double> weight;
  for (const auto i : order)
    weight.push_back(std::exp((logits[i] - max) / static_cast<long double>(params.temperature)));
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < weight.size()) {
    weight.resize(static_cast<std::size_t>(params.top_k));
  }
  const long double mass = std::accumulate(weight.begin(), weight.end(), 0.0L);
  long double sum = 0;
  std::size_t kept = 0;
  while (kept < weight.size() && (kept == 0 || sum < params.top_p * mass)) sum += weight[kept++];
  if (params.top_p < 1) weight.resize(kept);
  while (weight.back() < static_cast<long double>(params.min_p)) weight.pop_back();
  sum = std::accumulate(weight.begin(), weight.end(), 0.0L);
  std::vector<double> probability(logits.size());
  for (std::size_t i = 0; i < weight.size(); ++i) probability[order[i]] = static_cast<double>(weight[i] / sum);
  return probability;
}

/// Draws at many positions and compares with the exact distribution: chi-square over the tokens expected five times or
/// more, the others together in one class. Impossible tokens must never come.
void expect_distribution(const std::vector<float>& logits, const SamplingParams& params, int draws) {
  const auto probability = exact(logits, params);
  std::vector<int> count(logits.size());
  for (int i = 0; i < draws; ++i) ++count[static_cast<std::size_t>(sample(logits, params, i))];
  double chi_square = 0, rare_expected = 0, rare_count = 0;
  int classes = 0;
  const auto add = [&](double expected, double observed) {
    chi_square += (observed - expected) * (observed - expected) / expected;
    ++classes;
  };
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double expected = probability[i] * draws;
    if (expected == 0) {
      EXPECT_EQ(count[i], 0) << "token " << i;
    } else if (expected < 5) {
      rare_expected += expected;
      rare_count += count[i];
    } else {
      add(expected, count[i]);
    }
  }
  if (rare_expected >= 5) add(rare_expected, rare_count);
  const double freedom = std::max(1, classes - 1);
  EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom)) << classes << " classes";
}

SamplingParams sampling(float temperature, float top_p = 1, int top_k = 0, float min_p = 0, std::uint64_t seed = 42) {
  return {temperature, top_p, top_k, min_p, seed};
}

TEST(Philox, KnownAnswers) {  // of the authors' own implementation, Random123
  using Counter = std::array<std::uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Sampler, DrawsAreUniformAndIndependentOfNeighbours) {
  constexpr int draws = 100000;
  for (const std::uint64_t seed : {0ull, 1ull, ~0ull}) {
    std::vector<double> u(draws);
    for (int i = 0; i < draws; ++i) u[static_cast<std::size_t>(i)] = uniform_draw(seed, i);
    double mean = 0, covariance = 0;
    for (const double x : u) {
      ASSERT_GE(x, 0);
      ASSERT_LT(x, 1);
      mean += x / draws;
    }
    for (std::size_t i = 1; i < u.size(); ++i) covariance += (u[i] - 0.5) * (u[i - 1] - 0.5) / draws;
    EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(1.0 / 12 / draws));
    EXPECT_NEAR(covariance, 0, 5.0 / 12 / std::sqrt(draws));
  }
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheFirst) {
  for (const std::size_t vocab : {1u, 2u, 15u, 63u, 64u, 65u, 1000u, 129280u}) {
    auto logits = any_logits(vocab, static_cast<unsigned>(vocab));
    for (const std::size_t at : {std::size_t{0}, vocab / 2, vocab - 1}) {
      auto changed = logits;
      changed[at] = 100;
      EXPECT_EQ(sample(changed, sampling(0), 7), static_cast<std::int32_t>(at));
      changed[vocab - 1] = 100;
      EXPECT_EQ(sample(changed, sampling(0), 7), static_cast<std::int32_t>(at));
      EXPECT_EQ(sample(changed, sampling(1, 1, 1), 7), static_cast<std::int32_t>(at)) << "top_k = 1";
      EXPECT_EQ(sample(changed, sampling(1, 0), 7), static_cast<std::int32_t>(at)) << "top_p = 0";
      changed[at] = 101;
      EXPECT_EQ(sample(changed, sampling(1e-42f, 0.9f), 7), static_cast<std::int32_t>(at)) << "hardly any temperature";
    }
    std::fill(logits.begin(), logits.end(), -3.0f);
    EXPECT_EQ(sample(logits, sampling(0), 0), 0);
  }
}

TEST(Sampler, DrawsFromTheDistribution) {
  const auto small = any_logits(10, 1), odd = any_logits(203, 2), wide = any_logits(1000, 3);
  for (const auto& logits : {small, odd, wide}) {
    for (const float temperature : {0.3f, 1.0f, 2.5f}) {
      expect_distribution(logits, sampling(temperature), 2000);
      expect_distribution(logits, sampling(temperature, 0.9f), 2000);
      expect_distribution(logits, sampling(temperature, 1, 7), 2000);
      expect_distribution(logits, sampling(temperature, 1, 0, 0.05f), 2000);
      expect_distribution(logits, sampling(temperature, 0.8f, 5), 2000);
      expect_distribution(logits, sampling(temperature, 0.95f, 40, 0.1f), 2000);
      expect_distribution(logits, sampling(temperature, 0.6f, 0, 0.02f), 2000);
    }
  }
}

TEST(Sampler, DrawsFromTheDistributionOfAFullVocabulary) {
  const auto logits = any_logits(129280, 4, 3);
  expect_distribution(logits, sampling(1), 200);
  expect_distribution(logits, sampling(0.6f, 0.95f), 200);  // R1's own recommendation
  expect_distribution(logits, sampling(1, 0.9f, 50), 200);
  expect_distribution(logits, sampling(1, 1, 5000, 0.01f), 200);
}

TEST(Sampler, EqualLogitsKeepTheLowestIds) {
  const std::vector<float> flat(500, 1.5f);
  expect_distribution(flat, sampling(1), 2000);
  expect_distribution(flat, sampling(1, 1, 3), 2000);
  expect_distribution(flat, sampling(1, 0.0999f), 2000);
  expect_distribution(flat, sampling(1, 1, 0, 1), 2000);
}

TEST(Sampler, DependsOnSeedAndPositionOnly) {
  const auto logits = any_logits(5000, 5);
  int seeds_differ = 0, positions_differ = 0;
  for (int i = 0; i < 100; ++i) {
    const auto params = sampling(1, 0.99f, 0, 0, static_cast<std::uint64_t>(i));
    const auto token = sample(logits, params, i);
    EXPECT_EQ(token, sample(logits, params, i));
    seeds_differ += token != sample(logits, sampling(1, 0.99f, 0, 0, 1000), i);
    positions_differ += token != sample(logits, params, i + (std::int64_t{1} << 32));
  }
  EXPECT_GT(seeds_differ, 90);
  EXPECT_GT(positions_differ, 90);
}

TEST(Sampler, NumbersThatAreNone) {
  auto logits = any_logits(200, 6);
  logits[3] = nan;
  logits[150] = -infinity;
  logits[77] = 50;
  EXPECT_EQ(sample(logits, sampling(0), 0), 77);
  for (int i = 0; i < 2000; ++i) {
    const auto token = sample(logits, sampling(30), i);
    EXPECT_TRUE(token != 3 && token != 150);
  }
  EXPECT_EQ(log_probability(logits, 3, 0).logprob, -infinity);
  EXPECT_EQ(log_probability(logits, 150, 0).logprob, -infinity);
  EXPECT_EQ(log_probability(logits, 0, 200).top.size(), 198u);

  logits[10] = logits[20] = infinity;
  EXPECT_EQ(sample(logits, sampling(0), 0), 10);
  EXPECT_EQ(sample(logits, sampling(1, 1, 1), 0), 10);
  int first = 0;
  for (int i = 0; i < 1000; ++i) {
    const auto token = sample(logits, sampling(1, 0.9f, 50), i);
    EXPECT_TRUE(token == 10 || token == 20);
    first += token == 10;
  }
  EXPECT_NEAR(first, 500, 80);
  EXPECT_FLOAT_EQ(log_probability(logits, 20, 0).logprob, std::log(0.5f));
  EXPECT_EQ(log_probability(logits, 77, 5).logprob, -infinity);
  EXPECT_EQ(log_probability(logits, 77, 5).top.size(), 2u);

  for (const float useless : {nan, -infinity}) {
    const std::vector<float> row(100, useless);
    EXPECT_THROW(sample(row, sampling(0), 0), Error);
    EXPECT_THROW(sample(row, sampling(1, 0.9f), 0), Error);
    EXPECT_THROW(log_probability(row, 0, 1), Error);
  }
  EXPECT_THROW(sample({}, sampling(1), 0), Error);
}

TEST(Sampler, ParametersThatAreNone) {
  const auto logits = any_logits(300, 7);
  for (const float strange : {nan, infinity, -infinity, -1.0f, 0.0f, 2.0f, 1e-45f}) {
    for (const auto& params : {sampling(strange), sampling(1, strange), sampling(1, 1, -5, strange),
                               sampling(strange, strange, 10, strange), sampling(strange, strange, 1 << 30, strange)}) {
      const auto token = sample(logits, params, 3);
      EXPECT_TRUE(token >= 0 && token < 300);
    }
  }
}

TEST(LogProbability, AgreesWithLongDouble) {
  for (const std::size_t vocab : {1u, 5u, 64u, 1000u, 129280u}) {
    for (const float spread : {0.0f, 0.1f, 3.0f, 30.0f}) {
      auto logits = any_logits(vocab, static_cast<unsigned>(vocab) + 1, spread);
      for (float& logit : logits) logit += 25;
      long double sum = 0;
      const long double max = *std::max_element(logits.begin(), logits.end());
      for (const float logit : logits) sum += std::exp(logit - max);
      const long double log_sum = max + std::log(sum);
      for (std::size_t i = 0; i < vocab; i += 1 + vocab / 7) {
        const auto expected = static_cast<double>(logits[i] - log_sum);
        const auto got = log_probability(logits, static_cast<std::int32_t>(i), 0);
        EXPECT_EQ(got.token, static_cast<std::int32_t>(i));
        EXPECT_NEAR(got.logprob, expected, 1e-6 + 1e-7 * std::abs(expected));
        EXPECT_TRUE(got.top.empty());
      }
    }
  }
}

TEST(LogProbability, ListsTheMostLikely) {
  for (const std::size_t vocab : {3u, 64u, 129280u}) {
    auto logits = any_logits(vocab, 9);
    for (float& logit : logits) logit = std::round(logit * 100) / 100;  // so that there are equals
    std::vector<std::int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    for (const int n : {1, 2, 5, 20, 2500}) {
      const auto top = log_probability(logits, 0, n).top;
      ASSERT_EQ(top.size(), std::min(vocab, static_cast<std::size_t>(n)));
      for (std::size_t i = 0; i < top.size(); ++i) {
        EXPECT_EQ(top[i].first, order[i]);
        EXPECT_EQ(top[i].second, log_probability(logits, order[i], 0).logprob);
        if (i == 20) break;
      }
    }
  }
}

TEST(LogProbability, RefusesTokensOutsideTheVocabulary) {
  const auto logits = any_logits(10, 1);
  EXPECT_THROW(log_probability(logits, -1, 0), Error);
  EXPECT_THROW(log_probability(logits, 10, 0), Error);
}

}  // namespace
}  // namespace shoal
