#pragma once
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "runtime/coordinator.h"
#include "runtime/step.h"

namespace shoal::test {

/// A "model" whose next token is a hash of all tokens so far: any slip in order, position, page or chunk changes it.
inline std::uint64_t mix(std::uint64_t state, std::uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15u;
  return state ^ state >> 29;
}

constexpr int fake_vocab = 50;

inline std::uint64_t fake_state(std::span<const std::int32_t> tokens) {
  std::uint64_t state = 1;
  for (const std::int32_t token : tokens) state = mix(state, static_cast<std::uint64_t>(token) + 1);
  return state;
}
inline std::int32_t fake_next(std::uint64_t state, std::uint64_t seed) {
  return static_cast<std::int32_t>(mix(state, seed) % fake_vocab);
}
inline TokenLogprob fake_logprob(std::uint64_t state, std::int32_t token) {
  return {token, -static_cast<float>(mix(state, static_cast<std::uint64_t>(token)) % 1000) / 100, {}};
}

/// What a request should get, worked out without any scheduler.
struct Expected {
  std::vector<TokenLogprob> prompt;
  std::vector<std::int32_t> tokens;
  FinishReason finish = FinishReason::length;
};

inline Expected expected_of(const GenerationRequest& request, int max_model_len) {
  Expected expected;
  std::vector<std::int32_t> tokens = request.prompt;
  if (request.prompt_logprobs) {
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      expected.prompt.push_back(fake_logprob(fake_state(std::span(tokens).first(i)), tokens[i]));
    }
  }
  for (int i = 0; i < request.max_tokens && (max_model_len <= 0 || std::cmp_less(tokens.size(), max_model_len)); ++i) {
    tokens.push_back(fake_next(fake_state(tokens), request.sampling.seed));
    expected.tokens.push_back(tokens.back());
    const auto& stops = request.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), tokens.back()) != stops.end()) {
      expected.finish = FinishReason::stop;
      break;
    }
  }
  return expected;
}

/// A rank without a model, but with a KV cache of its own: tokens are written to and read back from the slots of the
/// pages that the coordinator gave. Checks every plan against what a rank may rely on.
class FakeWorker {
 public:
  FakeWorker(const CoordinatorOptions& options, int rank)
      : options_(options),
        cache_(static_cast<std::size_t>(options.kv_pages[static_cast<std::size_t>(rank)] * options.page_tokens), -1) {}

  StepResult run(const StepPlan& plan) {
    EXPECT_GT(plan.step, last_step_);
    last_step_ = plan.step;
    for (const std::uint64_t id : plan.finish) EXPECT_EQ(sequences_.erase(id), 1u) << "finish of unknown " << id;
    for (const SequenceStart& start : plan.start) {
      EXPECT_GT(start.sequence, newest_) << "sequences must start in the order of their submission";
      newest_ = start.sequence;
      EXPECT_TRUE(sequences_.try_emplace(start.sequence, Sequence{start, 0}).second);
    }
    std::set<std::int32_t> in_use;
    for (const auto& [id, sequence] : sequences_) {
      for (const std::int32_t page : sequence.start.pages) {
        EXPECT_TRUE(in_use.insert(page).second) << "page " << page << " has two owners";
      }
    }
    EXPECT_LE(sequences_.size(), static_cast<std::size_t>(options_.max_num_seqs));

    StepResult result;
    result.step = plan.step;
    std::size_t tokens = 0;
    std::set<std::uint64_t> seen;
    for (const SequenceChunk& chunk : plan.chunks) {
      tokens += chunk.tokens.size();
      EXPECT_TRUE(seen.insert(chunk.sequence).second) << "two chunks of one sequence";
      run(chunk, result);
    }
    EXPECT_LE(tokens, static_cast<std::size_t>(options_.max_batched_tokens));
    return result;
  }

  std::size_t known_sequences() const { return sequences_.size(); }

 private:
  struct Sequence {
    SequenceStart start;
    std::int32_t computed = 0;
  };

  std::int32_t& slot(const Sequence& sequence, std::int32_t position) {
    const std::int32_t page = sequence.start.pages.at(static_cast<std::size_t>(position / options_.page_tokens));
    return cache_.at(static_cast<std::size_t>(page * options_.page_tokens + position % options_.page_tokens));
  }

  void run(const SequenceChunk& chunk, StepResult& result) {
    const auto at = sequences_.find(chunk.sequence);
    ASSERT_NE(at, sequences_.end()) << "chunk of a sequence that was not started";
    Sequence& sequence = at->second;
    ASSERT_EQ(chunk.position, sequence.computed) << "chunks must follow one another";
    ASSERT_FALSE(chunk.tokens.empty());
    SequenceOutput output;
    output.sequence = chunk.sequence;
    for (std::size_t i = 0; i < chunk.tokens.size(); ++i) {
      slot(sequence, sequence.computed++) = chunk.tokens[i];
      const bool last = i + 1 == chunk.tokens.size();
      const std::int32_t next = last ? chunk.next_token : chunk.tokens[i + 1];
      if (chunk.score && next >= 0) output.scored.push_back(fake_logprob(cached_state(sequence), next));
    }
    if (chunk.sample) {
      const std::uint64_t state = cached_state(sequence);
      output.token = fake_next(state, sequence.start.sampling.seed);
      if (sequence.start.logprobs >= 0) output.sampled.push_back(fake_logprob(state, output.token));
    }
    if (chunk.sample || chunk.score) result.outputs.push_back(std::move(output));
  }

  std::uint64_t cached_state(const Sequence& sequence) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < sequence.computed; ++i) tokens.push_back(slot(sequence, i));
    return fake_state(tokens);
  }

  CoordinatorOptions options_;
  std::vector<std::int32_t> cache_;  // [pages * page_tokens]
  std::map<std::uint64_t, Sequence> sequences_;
  std::uint64_t last_step_ = 0, newest_ = 0;
};

}  // namespace shoal::test
