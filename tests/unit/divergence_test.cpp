#include "launch/divergence.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "launch/scored_run.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

TokenLogprob position(std::int32_t token, std::vector<std::pair<std::int32_t, double>> probabilities) {
  TokenLogprob p{token, 0, {}};
  for (const auto& [id, probability] : probabilities) {
    p.top.emplace_back(id, static_cast<float>(std::log(probability)));
    if (id == token) p.logprob = p.top.back().second;
  }
  return p;
}

TEST(Divergence, IsExactOverWholeVocabularies) {
  const auto p = position(0, {{0, 0.5}, {1, 0.3}, {2, 0.2}}), q = position(0, {{1, 0.6}, {0, 0.25}, {2, 0.15}});
  const double expected = 0.5 * std::log(0.5 / 0.25) + 0.3 * std::log(0.3 / 0.6) + 0.2 * std::log(0.2 / 0.15);
  EXPECT_NEAR(divergence_of(p, q), expected, 1e-6);
  EXPECT_NEAR(divergence_of(p, p), 0, 1e-6);
}

TEST(Divergence, IsALowerBoundWhereListsAreCut) {
  const auto p = position(0, {{0, 0.5}, {1, 0.3}}), q = position(0, {{1, 0.6}, {0, 0.25}});
  const double expected = 0.5 * std::log(0.5 / 0.25) + 0.3 * std::log(0.3 / 0.6) + 0.2 * std::log(0.2 / 0.15);
  EXPECT_NEAR(divergence_of(p, q), expected, 1e-6) << "one token is left over: nothing is lost";
  const auto short_q = position(1, {{1, 0.6}});
  EXPECT_LE(divergence_of(p, short_q), expected);
  EXPECT_GE(divergence_of(p, short_q), 0);
}

TEST(Divergence, SummarizesPositions) {
  Divergence d;
  EXPECT_THROW(d.summary(), Error);
  const auto p = position(0, {{0, 0.5}, {1, 0.3}, {2, 0.2}}), q = position(0, {{1, 0.6}, {0, 0.25}, {2, 0.15}});
  for (int i = 0; i < 99; ++i) d.add(p, p);
  d.add(p, q);
  const auto s = d.summary();
  EXPECT_EQ(s.positions, 100);
  EXPECT_NEAR(s.mean, divergence_of(p, q) / 100, 1e-7);
  EXPECT_NEAR(s.max, divergence_of(p, q), 1e-7);
  EXPECT_NEAR(s.percentile_99, divergence_of(p, q), 1e-7);
  EXPECT_NEAR(s.top1_agreement, 0.99, 1e-12);
  EXPECT_NEAR(s.reference_perplexity, 2, 1e-5);
  EXPECT_NEAR(s.perplexity, std::pow(2, 0.99) * std::pow(4, 0.01), 1e-5);
}

TEST(ScoredRun, ComesBackAsItWasWritten) {
  const ScratchFolder folder;
  const auto path = folder.path() / "run";
  const ScoredWindow window{{5, 0, 1}, 1, {position(0, {{0, 0.5}, {1, 0.3}}), position(1, {{1, 0.9}})}};
  {
    ScoredRunWriter writer(path, 10);
    writer.add(window);
    writer.add({{7}, 1, {}});
    writer.finish();
  }
  ScoredRunReader reader(path, 10);
  const auto first = reader.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->tokens, window.tokens);
  ASSERT_EQ(first->scores.size(), 2u);
  EXPECT_EQ(first->scores[0].top, window.scores[0].top);
  EXPECT_EQ(first->scores[1].token, 1);
  EXPECT_EQ(first->scores[1].logprob, window.scores[1].logprob);
  EXPECT_EQ(reader.next()->tokens, (std::vector<std::int32_t>{7}));
  EXPECT_FALSE(reader.next());
  EXPECT_THROW(ScoredRunReader(path, 11), Error);

  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 20);
  ScoredRunReader cut(path, 10);
  EXPECT_THROW(while (cut.next()){}, Error);
}

}  // namespace
}  // namespace shoal
