#include "runtime/token_steering.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace shoal {
namespace {

constexpr float impossible = -std::numeric_limits<float>::infinity();
using Row = std::vector<float>;

Row steer(TokenSteering& steering, Row logits) {
  steering.apply(logits);
  return logits;
}

TEST(TokenSteering, PenaltiesFollowTheirFormulas) {
  TokenRules rules;
  rules.presence_penalty = 0.5f;
  rules.frequency_penalty = 0.25f;
  rules.repetition_penalty = 2;
  rules.prompt_tokens = {0, 1};
  TokenSteering steering(rules, nullptr);
  for (const int token : {1, 2, 2}) steering.push(token);
  EXPECT_EQ(steer(steering, {3, 3, -3, 3}), (Row{1.5f, 1.5f - 0.75f, -6 - 1.0f, 3}));
}

TEST(TokenSteering, BiasesAndAllowedTokens) {
  TokenRules rules;
  rules.logit_bias = {{1, 5.0f}, {2, -100.0f}, {99, 1.0f}};
  rules.allowed = {1, 2, 99};
  TokenSteering steering(rules, nullptr);
  EXPECT_EQ(steer(steering, {1, 1, 1, 1}), (Row{impossible, 6, -99, impossible}));
}

TEST(TokenSteering, NoEndBeforeTheLeastNumberOfTokens) {
  TokenRules rules;
  rules.min_tokens = 2;
  rules.end_tokens = {0, 3};
  TokenSteering steering(rules, nullptr);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(steer(steering, {9, 1, 1, 9}), (Row{impossible, 1, 1, impossible}));
    steering.push(1);
  }
  EXPECT_EQ(steer(steering, {9, 1, 1, 9}), (Row{9, 1, 1, 9}));
}

TEST(TokenSteering, SomethingIsAlwaysPossible) {
  TokenRules rules;
  rules.allowed = {0};
  rules.end_tokens = {0};
  rules.min_tokens = 9;
  TokenSteering steering(rules, nullptr);
  EXPECT_GT(steer(steering, {1, 1})[0], impossible);
  rules.allowed = {77};
  rules.end_tokens.clear();
  TokenSteering nowhere(rules, nullptr);
  EXPECT_GT(steer(nowhere, {1, 1})[0], impossible);
}

TokenRules thinks_for(int tokens) {
  TokenRules rules;
  rules.starts_thinking = true;
  rules.thinking = {tokens, 7, {6, 7, 8}};
  return rules;
}

TEST(TokenSteering, ThinkingIsClosedAtItsLimit) {
  TokenSteering steering(thinks_for(3), nullptr);
  for (const int token : {1, 2, 3}) {
    EXPECT_FALSE(steering.forced());
    steering.push(token);
  }
  for (const int token : {6, 7, 8}) {
    EXPECT_EQ(steering.forced(), token);
    steering.push(token);
  }
  EXPECT_FALSE(steering.forced());
}

TEST(TokenSteering, ThinkingThatEndsInTimeIsLeftAlone) {
  TokenSteering steering(thinks_for(3), nullptr);
  for (const int token : {1, 7, 2, 3, 4}) {
    EXPECT_FALSE(steering.forced());
    steering.push(token);
  }
}

TEST(TokenSteering, NoThinkingAtAll) {
  TokenSteering steering(thinks_for(0), nullptr);
  EXPECT_EQ(steering.forced(), 6);
}

/// 0 ends, then a, b, line breaks and </think>.
std::shared_ptr<const grammar::TokenTable> letters() {
  return std::make_shared<const grammar::TokenTable>(
      std::vector<std::string>{"", "a", "b", "ab", "\n\n", "c", "d", "</think>"});
}

TEST(TokenSteering, AGrammarBindsTheAnswerAndThenEndsIt) {
  grammar::GrammarCache grammars(letters());
  TokenRules rules;
  rules.grammar = R"(root ::= "a" "b"?)";
  rules.end_tokens = {0};
  TokenSteering steering(rules, &grammars);
  const Row row(8, 1.0f);
  EXPECT_EQ(steer(steering, row), (Row{impossible, 1, impossible, 1, impossible, impossible, impossible, impossible}));
  TokenSteering other = steering;
  steering.push(1);
  EXPECT_EQ(steer(steering, row), (Row{1, impossible, 1, impossible, impossible, impossible, impossible, impossible}));
  other.push(3);
  EXPECT_EQ(steer(other, row)[0], 1);
  EXPECT_EQ(steer(other, row)[1], impossible);
}

TEST(TokenSteering, AGrammarLeavesTheThinkingAlone) {
  grammar::GrammarCache grammars(letters());
  TokenRules rules = thinks_for(-1);
  rules.grammar = R"(root ::= "a")";
  rules.end_tokens = {0};
  TokenSteering steering(rules, &grammars);
  const Row row(8, 1.0f);
  EXPECT_EQ(steer(steering, row), row);
  steering.push(5);
  EXPECT_EQ(steer(steering, row), row);
  steering.push(7);
  // One line break may stand between thinking and answer, as R1 puts it there.
  EXPECT_EQ(steer(steering, row), (Row{impossible, 1, impossible, impossible, 1, impossible, impossible, impossible}));
  steering.push(4);
  EXPECT_EQ(steer(steering, row)[4], impossible);
  EXPECT_EQ(steer(steering, row)[1], 1);
  steering.push(1);
  EXPECT_EQ(steer(steering, row)[0], 1);
}

/// An answer that goes on where it was interrupted: its grammar follows it in time that is given, and no token is
/// missed.
TEST(TokenSteering, AGrammarFollowsALongAnswerBitByBit) {
  grammar::GrammarCache grammars(letters());
  TokenRules rules;
  rules.grammar = R"(root ::= ("a" "b"){300} "c")";
  rules.end_tokens = {0};
  TokenSteering steering(rules, &grammars);
  for (int i = 0; i < 300; ++i) steering.push(3);
  int unfinished = 0;
  while (!steering.prepare(std::chrono::steady_clock::now())) ++unfinished;
  EXPECT_GE(unfinished, 500);
  EXPECT_EQ(steer(steering, Row(8, 1.0f))[5], 1);
  EXPECT_EQ(steer(steering, Row(8, 1.0f))[3], impossible);
}

TEST(TokenSteering, AGrammarNeedsTokens) {
  TokenRules rules;
  rules.grammar = R"(root ::= "a")";
  EXPECT_THROW(TokenSteering(rules, nullptr), Error);
}

}  // namespace
}  // namespace shoal
