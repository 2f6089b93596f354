#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/step.h"
#include "runtime/text/tokenizer.h"

namespace shoal {

/// A token as the legacy API writes it: its text; "bytes:\xe2\x80" where it is no whole character; "token_id:5" without
/// a tokenizer (null), and for ids that stand for nothing.
std::string token_label(const Tokenizer* tokenizer, std::int32_t token);

/// The legacy `logprobs` object: parallel lists `tokens`, `token_logprobs`, `top_logprobs` (each the most likely tokens
/// and the chosen one), `text_offset` (where in the choice's text, in characters, the token begins).
class LegacyLogprobs {
 public:
  using Json = nlohmann::ordered_json;

  explicit LegacyLogprobs(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  /// A prompt's first token, of which no model can say how likely it was.
  void add_first(std::int32_t token, bool in_text);
  /// in_text: the token's text is part of the choice's; special tokens are often left out.
  void add(const TokenLogprob& token, bool in_text);
  /// What was added since the last call.
  Json take();

 private:
  void add_token(std::int32_t token, bool in_text);

  const Tokenizer* tokenizer_;
  Json tokens_ = Json::array(), logprobs_ = Json::array(), top_ = Json::array(), offsets_ = Json::array();
  std::int64_t characters_ = 0;    // begun so far
  int missing_continuations_ = 0;  // bytes that the last one still lacks
};

/// The entries of chat's `logprobs.content`: `token`, `logprob`, `bytes`, `top_logprobs`.
nlohmann::ordered_json chat_logprobs(const Tokenizer* tokenizer, std::span<const TokenLogprob> tokens);

}  // namespace shoal
