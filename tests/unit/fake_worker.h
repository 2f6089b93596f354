#pragma once
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "runtime/coordinator.h"
#include "runtime/step.h"

namespace shoal::test {

/// A "model" whose next token is a hash of all tokens so far: any slip in order, position, page or chunk changes it.
inline std::uint64_t hashed(std::uint64_t state, std::uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15u;
  return state ^ state >> 29;
}

constexpr int fake_vocab = 50;

inline std::uint64_t fake_state(std::span<const std::int32_t> tokens) {
  std::uint64_t state = 1;
  for (const std::int32_t token : tokens) state = hashed(state, static_cast<std::uint64_t>(token) + 1);
  return state;
}
inline std::int32_t fake_next(std::uint64_t state, std::uint64_t seed) {
  return static_cast<std::int32_t>(hashed(state, seed) % fake_vocab);
}
inline TokenLogprob fake_logprob(std::uint64_t state, std::int32_t token) {
  return {token, -static_cast<float>(hashed(state, static_cast<std::uint64_t>(token)) % 1000) / 100, {}};
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
  /// `drafts`: guesses it makes after each token, about half of them right. `late`: about one token in so many comes in
  /// a later step; 0: none.
  FakeWorker(const CoordinatorOptions& options, int rank, int drafts = 0, unsigned late = 0)
      : options_(options),
        drafts_(drafts),
        late_(late),
        cache_(static_cast<std::size_t>(options.kv_pages[static_cast<std::size_t>(rank)] * options.page_tokens), -1) {}

  StepResult run(const StepPlan& plan) {
    EXPECT_GT(plan.step, last_step_);
    last_step_ = plan.step;
    for (const std::uint64_t id : plan.finish) EXPECT_EQ(sequences_.erase(id), 1u) << "finish of unknown " << id;
    for (const SequenceStart& start : plan.start) {
      EXPECT_TRUE(sequences_.try_emplace(start.sequence, Sequence{start, {}, 0}).second);
    }
    for (const SequenceChunk& chunk : plan.chunks) {
      auto& pages = sequences_.at(chunk.sequence).pages;
      pages.insert(pages.end(), chunk.pages.begin(), chunk.pages.end());
    }
    owners_.clear();
    for (const auto& [id, sequence] : sequences_) {
      for (const std::int32_t page : sequence.pages) ++owners_[page];
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

  /// Others were lost, or it was: it knows of no sequence any more, and its cache is as it was or has `pages` pages.
  void forget(int pages, bool cache_kept) {
    if (cache_kept) {
      for (const auto& [id, sequence] : sequences_) known_before_.insert(id);
    } else {
      known_before_.clear();
      cache_.assign(static_cast<std::size_t>(pages * options_.page_tokens), -1);
    }
    sequences_.clear();
    owners_.clear();
  }

  std::size_t known_sequences() const { return sequences_.size(); }
  std::size_t pages_in_use() const { return owners_.size(); }

 private:
  struct Sequence {
    SequenceStart start;
    std::vector<std::int32_t> pages;
    std::int32_t computed;
  };

  std::int32_t& slot(const Sequence& sequence, std::int32_t position) {
    const std::int32_t page = sequence.pages.at(static_cast<std::size_t>(position / options_.page_tokens));
    return cache_.at(static_cast<std::size_t>(page * options_.page_tokens + position % options_.page_tokens));
  }

  void run(const SequenceChunk& chunk, StepResult& result) {
    Sequence& sequence = sequences_.at(chunk.sequence);
    if (known_before_.erase(chunk.sequence) > 0) {
      sequence.computed = chunk.position;
    } else if (chunk.position > sequence.computed) {  // what others have computed
      EXPECT_EQ(sequence.computed % options_.page_tokens, 0) << "only full pages are shared";
      EXPECT_EQ(chunk.position % options_.page_tokens, 0) << "only full pages are shared";
      sequence.computed = chunk.position;
    }
    ASSERT_EQ(chunk.position, sequence.computed) << "chunks must follow one another";
    const auto known = static_cast<std::int32_t>(chunk.tokens.size()) - chunk.drafts;
    ASSERT_GT(known, 0);
    ASSERT_GE(chunk.drafts, 0);
    SequenceOutput output;
    output.sequence = chunk.sequence;
    for (std::int32_t i = 0; i < known + chunk.drafts; ++i) {
      const std::int32_t position = chunk.position + i;
      const std::int32_t page = sequence.pages.at(static_cast<std::size_t>(position / options_.page_tokens));
      EXPECT_EQ(owners_.at(page), 1) << "page " << page << " is written to and has other owners";
      slot(sequence, position) = chunk.tokens[static_cast<std::size_t>(i)];
      const std::int32_t next = i + 1 < known ? chunk.tokens[static_cast<std::size_t>(i + 1)] : chunk.next_token;
      if (chunk.score && i < known && next >= 0)
        output.scored.push_back(fake_logprob(cached_state(sequence, position + 1), next));
    }
    sequence.computed += known;
    output.later = chunk.sample && late_ > 0 && hashed(last_step_, chunk.sequence) % late_ == 0;
    if (output.later)
      --sequence.computed;
    else if (chunk.sample)
      sample(chunk, known, sequence, output);
    if (chunk.sample || chunk.score) result.outputs.push_back(std::move(output));
  }

  void sample(const SequenceChunk& chunk, std::int32_t known, Sequence& sequence, SequenceOutput& output) {
    for (std::int32_t i = known;; ++i) {
      const std::uint64_t state = cached_state(sequence, chunk.position + i);
      const std::int32_t token = fake_next(state, sequence.start.sampling.seed);
      output.tokens.push_back(token);
      if (sequence.start.logprobs >= 0) output.sampled.push_back(fake_logprob(state, token));
      if (i == known + chunk.drafts || token != chunk.tokens[static_cast<std::size_t>(i)]) break;
      ++sequence.computed;
    }
    std::vector<std::int32_t> tokens = cached(sequence, sequence.computed);
    tokens.push_back(output.tokens.back());
    for (int i = 0; i < drafts_; ++i) {
      const std::uint64_t state = fake_state(tokens);
      tokens.push_back(state % 2 ? fake_next(state, sequence.start.sampling.seed)
                                 : static_cast<std::int32_t>(state % 7));
      output.drafts.push_back(tokens.back());
    }
  }

  std::vector<std::int32_t> cached(const Sequence& sequence, std::int32_t length) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < length; ++i) tokens.push_back(slot(sequence, i));
    return tokens;
  }
  std::uint64_t cached_state(const Sequence& sequence, std::int32_t length) {
    return fake_state(cached(sequence, length));
  }

  CoordinatorOptions options_;
  int drafts_;
  unsigned late_;
  std::set<std::uint64_t> known_before_;  // forget(): they go on where they were
  std::vector<std::int32_t> cache_;       // [pages * page_tokens]
  std::map<std::uint64_t, Sequence> sequences_;
  std::map<std::int32_t, int> owners_;  // of each page in use
  std::uint64_t last_step_ = 0;
};

}  // namespace shoal::test
