#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace shoal {

/// How long a model may think before its answer. Thinking begins with the prompt or not at all.
struct ThinkingBudget {
  int max_tokens = -1;                // -1: no limit
  std::int32_t end_token = -1;        // </think>
  std::vector<std::int32_t> closing;  // what the model is made to say at the limit; `end_token` is among it

  bool operator==(const ThinkingBudget&) const = default;
};

/// What shapes an answer's tokens beside the distribution they are drawn from. Travels to the rank that samples.
struct TokenRules {
  // Penalties as OpenAI and vLLM define them. Presence and frequency look at the answer so far: logit -= presence +
  // frequency * count. Repetition looks at the prompt too, and divides positive logits, multiplies negative ones
  // (Keskar et al., "CTRL", 2019, section 4.1).
  float presence_penalty = 0, frequency_penalty = 0, repetition_penalty = 1;
  std::vector<std::int32_t> prompt_tokens;  // each once; only where there is a repetition penalty

  std::vector<std::pair<std::int32_t, float>> logit_bias;  // added
  std::vector<std::int32_t> allowed;                       // no other token; empty: all
  int min_tokens = 0;                                      // none of `end_tokens` before the answer has so many
  std::vector<std::int32_t> end_tokens;                    // those that end it

  bool starts_thinking = false;  // the prompt leaves the model in its thinking, which no grammar binds
  ThinkingBudget thinking;
  std::string grammar;  // what the answer must match, in GBNF (runtime/grammar/gbnf.h); empty: anything

  bool operator==(const TokenRules&) const = default;
  /// Nothing is asked of a token.
  bool empty() const {
    return presence_penalty == 0 && frequency_penalty == 0 && repetition_penalty == 1 && logit_bias.empty() &&
           allowed.empty() && min_tokens == 0 && thinking.max_tokens < 0 && grammar.empty();
  }
};

}  // namespace shoal
