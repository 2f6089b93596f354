#include "runtime/step.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "base/error.h"

namespace shoal {
namespace {

using Random = std::mt19937_64;

int number_up_to(Random& random, int most) { return std::uniform_int_distribution<int>(0, most)(random); }

/// Any 32 bits that are no NaN, since NaN compares unequal to itself.
float any_float(Random& random) { return std::uniform_real_distribution<float>(-1e30f, 1e30f)(random); }

std::vector<std::int32_t> any_tokens(Random& random, int most) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(number_up_to(random, most)));
  for (auto& token : tokens) token = static_cast<std::int32_t>(random());
  return tokens;
}

std::vector<TokenLogprob> any_logprobs(Random& random) {
  std::vector<TokenLogprob> all(static_cast<std::size_t>(number_up_to(random, 3)));
  for (auto& entry : all) {
    entry.token = static_cast<std::int32_t>(random());
    entry.logprob = any_float(random);
    entry.top.resize(static_cast<std::size_t>(number_up_to(random, 3)));
    for (auto& [token, logprob] : entry.top) {
      token = static_cast<std::int32_t>(random());
      logprob = any_float(random);
    }
  }
  return all;
}

TokenRules any_rules(Random& random) {
  TokenRules rules;
  rules.presence_penalty = any_float(random);
  rules.frequency_penalty = any_float(random);
  rules.repetition_penalty = any_float(random);
  rules.prompt_tokens = any_tokens(random, 5);
  for (int i = number_up_to(random, 3); i > 0; --i) {
    rules.logit_bias.emplace_back(static_cast<std::int32_t>(random()), any_float(random));
  }
  rules.allowed = any_tokens(random, 3);
  rules.min_tokens = number_up_to(random, 100);
  rules.end_tokens = any_tokens(random, 3);
  rules.starts_thinking = random() % 2;
  rules.thinking = {number_up_to(random, 100) - 1, static_cast<std::int32_t>(random()), any_tokens(random, 3)};
  rules.grammar.assign(static_cast<std::size_t>(number_up_to(random, 20)), 'g');
  return rules;
}

StepPlan any_plan(Random& random) {
  StepPlan plan;
  plan.step = random();
  plan.most_tokens = number_up_to(random, 1000);
  plan.start.resize(static_cast<std::size_t>(number_up_to(random, 3)));
  for (auto& start : plan.start) {
    start.sequence = random();
    start.sampling = {any_float(random), any_float(random), number_up_to(random, 1000),
                      any_float(random), random(),          any_rules(random)};
    start.logprobs = number_up_to(random, 21) - 1;
    start.answer = any_tokens(random, 5);
  }
  plan.chunks.resize(static_cast<std::size_t>(number_up_to(random, 3)));
  for (auto& chunk : plan.chunks) {
    chunk.sequence = random();
    chunk.position = static_cast<std::int32_t>(random());
    chunk.pages = any_tokens(random, 9);
    chunk.tokens = any_tokens(random, 9);
    chunk.drafts = static_cast<std::int32_t>(random());
    chunk.sample = random() % 2;
    chunk.score = random() % 2;
    chunk.next_token = static_cast<std::int32_t>(random());
  }
  plan.finish.resize(static_cast<std::size_t>(number_up_to(random, 3)));
  for (auto& sequence : plan.finish) sequence = random();
  plan.experts.resize(static_cast<std::size_t>(number_up_to(random, 2)));
  for (auto& layer : plan.experts) {
    layer.layer = number_up_to(random, 60);
    layer.experts.resize(static_cast<std::size_t>(number_up_to(random, 5)));
    for (auto& replicas : layer.experts) {
      replicas.resize(static_cast<std::size_t>(number_up_to(random, 3)));
      for (auto& r : replicas) r = {number_up_to(random, 300), any_float(random)};
    }
  }
  return plan;
}

StepResult any_result(Random& random) {
  StepResult result;
  result.step = random();
  result.outputs.resize(static_cast<std::size_t>(number_up_to(random, 3)));
  for (auto& output : result.outputs) {
    output.sequence = random();
    output.tokens = any_tokens(random, 3);
    output.drafts = any_tokens(random, 3);
    output.sampled = any_logprobs(random);
    output.scored = any_logprobs(random);
    output.later = random() % 2 == 0;
    output.overflowed = random() % 2 == 0;
  }
  result.expert_tokens.resize(static_cast<std::size_t>(number_up_to(random, 20)));
  for (auto& tokens : result.expert_tokens) tokens = static_cast<std::uint32_t>(random() >> (32 + random() % 32));
  result.expert_work.resize(static_cast<std::size_t>(number_up_to(random, 5)));
  for (auto& work : result.expert_work) work = static_cast<std::uint32_t>(random());
  result.compute_us = static_cast<std::uint32_t>(random());
  result.exchange_us = static_cast<std::uint32_t>(random());
  return result;
}

WorkerReady any_ready(Random& random) {
  return {.epoch = static_cast<std::uint32_t>(random()),
          .cache_kept = random() % 2 == 0,
          .outlives_one = random() % 2 == 0,
          .weight_bytes = random(),
          .kv_bytes = random(),
          .kv_pages = static_cast<std::int32_t>(random()),
          .backend = std::string(random() % 30, 'x'),
          .host = "höst \n\0"};
}

Regroup any_regroup(Random& random) {
  Regroup regroup{.epoch = static_cast<std::uint32_t>(random()), .members = any_tokens(random, 5), .placement = {}};
  regroup.placement.ranks = static_cast<int>(regroup.members.size());
  regroup.placement.tensor_parallel = random() % 2 == 0;
  regroup.placement.sliced_experts = random() % 2 == 0;
  regroup.placement.experts.resize(static_cast<std::size_t>(number_up_to(random, 3)));
  for (LayerPlacement& layer : regroup.placement.experts) {
    layer.resize(static_cast<std::size_t>(number_up_to(random, 4)));
    for (auto& replicas : layer) replicas.assign(random() % 3, {static_cast<std::int32_t>(random() % 9), 0.25f});
  }
  return regroup;
}

void expect_equal(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].token, b[i].token);
    EXPECT_EQ(a[i].logprob, b[i].logprob);
    EXPECT_EQ(a[i].top, b[i].top);
  }
}

TEST(Step, PlanSurvivesTheWire) {
  Random random(1);
  for (int i = 0; i < 200; ++i) {
    const StepPlan plan = any_plan(random);
    const StepPlan copy = decode_step_plan(encode(plan));
    EXPECT_EQ(copy.step, plan.step);
    EXPECT_EQ(copy.most_tokens, plan.most_tokens);
    ASSERT_EQ(copy.start.size(), plan.start.size());
    for (std::size_t j = 0; j < plan.start.size(); ++j) {
      const SequenceStart &a = plan.start[j], &b = copy.start[j];
      EXPECT_EQ(b.sequence, a.sequence);
      EXPECT_EQ(b.sampling.temperature, a.sampling.temperature);
      EXPECT_EQ(b.sampling.top_p, a.sampling.top_p);
      EXPECT_EQ(b.sampling.top_k, a.sampling.top_k);
      EXPECT_EQ(b.sampling.min_p, a.sampling.min_p);
      EXPECT_EQ(b.sampling.seed, a.sampling.seed);
      EXPECT_EQ(b.sampling.rules, a.sampling.rules);
      EXPECT_EQ(b.logprobs, a.logprobs);
      EXPECT_EQ(b.answer, a.answer);
    }
    ASSERT_EQ(copy.chunks.size(), plan.chunks.size());
    for (std::size_t j = 0; j < plan.chunks.size(); ++j) {
      const SequenceChunk &a = plan.chunks[j], &b = copy.chunks[j];
      EXPECT_EQ(b.sequence, a.sequence);
      EXPECT_EQ(b.position, a.position);
      EXPECT_EQ(b.pages, a.pages);
      EXPECT_EQ(b.tokens, a.tokens);
      EXPECT_EQ(b.drafts, a.drafts);
      EXPECT_EQ(b.sample, a.sample);
      EXPECT_EQ(b.score, a.score);
      EXPECT_EQ(b.next_token, a.next_token);
    }
    EXPECT_EQ(copy.finish, plan.finish);
    EXPECT_EQ(copy.experts, plan.experts);
  }
}

TEST(Step, ResultSurvivesTheWire) {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    const StepResult result = any_result(random);
    const StepResult copy = decode_step_result(encode(result));
    EXPECT_EQ(copy.step, result.step);
    ASSERT_EQ(copy.outputs.size(), result.outputs.size());
    for (std::size_t j = 0; j < result.outputs.size(); ++j) {
      EXPECT_EQ(copy.outputs[j].sequence, result.outputs[j].sequence);
      EXPECT_EQ(copy.outputs[j].tokens, result.outputs[j].tokens);
      EXPECT_EQ(copy.outputs[j].drafts, result.outputs[j].drafts);
      expect_equal(copy.outputs[j].sampled, result.outputs[j].sampled);
      expect_equal(copy.outputs[j].scored, result.outputs[j].scored);
      EXPECT_EQ(copy.outputs[j].later, result.outputs[j].later);
      EXPECT_EQ(copy.outputs[j].overflowed, result.outputs[j].overflowed);
    }
    EXPECT_EQ(copy.expert_tokens, result.expert_tokens);
    EXPECT_EQ(copy.expert_work, result.expert_work);
    EXPECT_EQ(copy.compute_us, result.compute_us);
    EXPECT_EQ(copy.exchange_us, result.exchange_us);
  }
}

TEST(Step, ReadySurvivesTheWire) {
  Random random(3);
  const WorkerReady ready = any_ready(random);
  const WorkerReady copy = decode_worker_ready(encode(ready));
  EXPECT_EQ(copy.epoch, ready.epoch);
  EXPECT_EQ(copy.cache_kept, ready.cache_kept);
  EXPECT_EQ(copy.outlives_one, ready.outlives_one);
  EXPECT_EQ(copy.weight_bytes, ready.weight_bytes);
  EXPECT_EQ(copy.kv_bytes, ready.kv_bytes);
  EXPECT_EQ(copy.kv_pages, ready.kv_pages);
  EXPECT_EQ(copy.backend, ready.backend);
  EXPECT_EQ(copy.host, ready.host);
}

TEST(Step, RegroupSurvivesTheWire) {
  Random random(5);
  for (int i = 0; i < 50; ++i) {
    const Regroup regroup = any_regroup(random);
    const Regroup copy = decode_regroup(encode(regroup));
    EXPECT_EQ(copy.epoch, regroup.epoch);
    EXPECT_EQ(copy.members, regroup.members);
    EXPECT_EQ(copy.placement.ranks, regroup.placement.ranks);
    EXPECT_EQ(copy.placement.tensor_parallel, regroup.placement.tensor_parallel);
    EXPECT_EQ(copy.placement.sliced_experts, regroup.placement.sliced_experts);
    EXPECT_EQ(copy.placement.experts, regroup.placement.experts);
  }
}

TEST(Step, SpecialFloatsAndExtremeCountersSurvive) {
  StepResult result;
  result.outputs = {{7, {}, {{5, -std::numeric_limits<float>::infinity(), {}}}, {}, {}}};
  result.expert_tokens = {0, 254, 255, 256, 65535, 65536, 1, std::numeric_limits<std::uint32_t>::max()};
  const StepResult copy = decode_step_result(encode(result));
  EXPECT_EQ(copy.outputs[0].sampled[0].logprob, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(copy.expert_tokens, result.expert_tokens);
}

TEST(Step, TheFormIsLittleEndian) {
  const auto bytes = encode(StepPlan{.step = 0x0102, .start = {}, .chunks = {}, .finish = {}, .experts = {}});
  ASSERT_EQ(bytes.size(), 1u + 8 + 4 + 4 + 4 + 4 + 4);
  EXPECT_EQ(bytes[0], std::byte{3});
  EXPECT_EQ(bytes[1], std::byte{2});
  EXPECT_EQ(bytes[2], std::byte{1});
}

TEST(Step, AnIdleStepIsSmall) {
  StepPlan decode_one;
  decode_one.chunks = {{1, 100, {}, {42}, 0, true, false, -1}};
  EXPECT_LT(encode(decode_one).size(), 64u);
  StepResult idle;
  idle.expert_tokens.assign(58 * 256, 3);
  EXPECT_LT(encode(idle).size(), 15000u);
}

/// Decodes bytes as all messages; true if none of them took the bytes. Anything but Error escapes.
bool refused_by_all(std::span<const std::byte> bytes) {
  int refused = 0;
  const auto attempt = [&](auto decode) {
    try {
      decode(bytes);
    } catch (const Error&) {
      ++refused;
    }
  };
  attempt(decode_step_plan);
  attempt(decode_step_result);
  attempt(decode_worker_ready);
  attempt(decode_regroup);
  return refused == 4;
}

TEST(Step, EveryTruncationIsRefused) {
  Random random(4);
  for (int i = 0; i < 20; ++i) {
    for (const auto& bytes : {encode(any_plan(random)), encode(any_result(random)), encode(any_ready(random)),
                              encode(any_regroup(random))}) {
      for (std::size_t length = 0; length < bytes.size(); ++length) {
        EXPECT_TRUE(refused_by_all(std::span(bytes).first(length))) << length << " of " << bytes.size();
      }
      auto longer = bytes;
      longer.push_back(std::byte{0});
      EXPECT_TRUE(refused_by_all(longer));
    }
  }
}

TEST(Step, MessagesAreNotTakenForOneAnother) {
  EXPECT_THROW(decode_step_plan(encode(StepResult{})), Error);
  EXPECT_THROW(decode_step_result(encode(WorkerReady{})), Error);
  EXPECT_THROW(decode_worker_ready(encode(StepPlan{})), Error);
}

TEST(Step, RandomBytesDoNoHarm) {
  Random random(5);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes(random() % 200);
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    if (!bytes.empty()) bytes[0] = static_cast<std::byte>(random() % 5);  // most would stop at the first byte
    refused_by_all(bytes);
  }
}

TEST(Step, DamagedMessagesDoNoHarm) {
  Random random(6);
  for (int i = 0; i < 3000; ++i) {
    for (auto bytes : {encode(any_plan(random)), encode(any_result(random)), encode(any_ready(random)),
                       encode(any_regroup(random))}) {
      for (int hits = 0; hits < 3; ++hits) bytes[random() % bytes.size()] = static_cast<std::byte>(random());
      refused_by_all(bytes);
    }
  }
}

TEST(Step, AHugeCountIsRefusedBeforeAnythingIsAllocated) {
  auto bytes = encode(StepPlan{});
  std::memset(bytes.data() + 13, 0xFF, 4);  // the number of starts
  EXPECT_THROW(decode_step_plan(bytes), Error);
  std::memset(bytes.data() + 13, 0, 4);
  std::memset(bytes.data() + 21, 0xFF, 4);  // the number of finished sequences
  EXPECT_THROW(decode_step_plan(bytes), Error);
}

}  // namespace
}  // namespace shoal
