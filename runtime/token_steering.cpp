#include "runtime/token_steering.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shoal {
namespace {

constexpr float impossible = -std::numeric_limits<float>::infinity();

bool in_row(std::int32_t token, std::span<const float> logits) {
  return token >= 0 && static_cast<std::size_t>(token) < logits.size();
}

bool is_line_break(std::string_view bytes) { return !bytes.empty() && bytes.find_first_not_of("\r\n") == bytes.npos; }

/// Leaves these tokens as they are and makes all others impossible.
void keep_only(std::span<const std::int32_t> tokens, std::span<float> logits) {
  std::vector<std::pair<std::int32_t, float>> kept;
  for (const std::int32_t token : tokens) {
    if (in_row(token, logits)) kept.emplace_back(token, logits[static_cast<std::size_t>(token)]);
  }
  std::fill(logits.begin(), logits.end(), impossible);
  for (const auto& [token, logit] : kept) logits[static_cast<std::size_t>(token)] = logit;
}

bool any_possible(std::span<const float> logits) {
  return std::any_of(logits.begin(), logits.end(), [](float logit) { return logit > impossible; });
}

}  // namespace

TokenSteering::TokenSteering(const TokenRules& rules, grammar::GrammarCache* grammars)
    : rules_(std::make_shared<const TokenRules>(rules)), thinking_(rules.starts_thinking) {
  is_closing_ = thinking_ && rules.thinking.max_tokens == 0;
  if (rules.grammar.empty()) return;
  if (!grammars) fail("a grammar needs the model's tokenizer, and this rank has none");
  matcher_.emplace(grammars->get(rules.grammar));
}

std::optional<std::int32_t> TokenSteering::forced() const {
  if (!is_closing_ || closing_ >= rules_->thinking.closing.size()) return {};
  return rules_->thinking.closing[closing_];
}

bool TokenSteering::prepare(std::chrono::steady_clock::time_point until) {
  if (!matcher_) return true;
  matcher_->catch_up();  // while it thinks, too
  return thinking_ || forced() || (follow(until) && matcher_->prepare(until));
}

bool TokenSteering::follow(std::chrono::steady_clock::time_point until) {
  while (followed_ < answer_.size()) {
    matcher_->push(std::string_view(answer_).substr(followed_++, 1));
    if (std::chrono::steady_clock::now() >= until) break;
  }
  if (followed_ < answer_.size()) return false;
  answer_.clear();
  followed_ = 0;
  return true;
}

void TokenSteering::push(std::int32_t token) {
  ++tokens_;
  ++counts_[token];
  const bool was_forced = forced() == token;
  if (was_forced) ++closing_;
  if (thinking_) {
    if (token == rules_->thinking.end_token) {
      thinking_ = false;
      just_thought_ = true;
    } else if (tokens_ == rules_->thinking.max_tokens) {
      is_closing_ = true;
    }
  } else if (!was_forced) {
    advance_grammar(token);
  }
}

void TokenSteering::advance_grammar(std::int32_t token) {
  if (!matcher_) return;
  const auto& ends = rules_->end_tokens;
  if (std::find(ends.begin(), ends.end(), token) != ends.end()) return;
  const std::string_view bytes = matcher_->tokens().bytes(token);
  if (std::exchange(just_thought_, false) && is_line_break(bytes)) return;
  answer_ += bytes;
}

void TokenSteering::apply(std::span<float> logits) {
  if (!any_possible(logits)) return;  // the sampler says what is wrong
  if (!rules_->allowed.empty()) keep_only(rules_->allowed, logits);
  for (const auto& [token, bias] : rules_->logit_bias) {
    if (in_row(token, logits)) logits[static_cast<std::size_t>(token)] += bias;
  }
  penalize(logits);
  if (matcher_ && !thinking_) keep_to_grammar(logits);
  if (tokens_ < rules_->min_tokens) keep_going(logits);
  if (any_possible(logits)) return;
  // Rules that rule out each other: the answer ends, or goes on with anything where nothing ends it.
  if (rules_->end_tokens.empty()) std::fill(logits.begin(), logits.end(), 0.0f);
  for (const std::int32_t token : rules_->end_tokens) {
    if (in_row(token, logits)) logits[static_cast<std::size_t>(token)] = 0;
  }
}

void TokenSteering::penalize(std::span<float> logits) const {
  const TokenRules& rules = *rules_;
  if (rules.repetition_penalty != 1) {
    const auto repeat = [&](std::int32_t token) {
      if (!in_row(token, logits)) return;
      float& logit = logits[static_cast<std::size_t>(token)];
      logit = logit > 0 ? logit / rules.repetition_penalty : logit * rules.repetition_penalty;
    };
    for (const std::int32_t token : rules.prompt_tokens) {
      if (!counts_.contains(token)) repeat(token);
    }
    for (const auto& [token, count] : counts_) repeat(token);
  }
  if (rules.presence_penalty == 0 && rules.frequency_penalty == 0) return;
  for (const auto& [token, count] : counts_) {
    if (!in_row(token, logits)) continue;
    logits[static_cast<std::size_t>(token)] -=
        rules.presence_penalty + rules.frequency_penalty * static_cast<float>(count);
  }
}

void TokenSteering::keep_to_grammar(std::span<float> logits) {
  follow(std::chrono::steady_clock::time_point::max());
  const grammar::TokenMask& mask = matcher_->allowed();
  const bool nothing_fits = std::all_of(mask.begin(), mask.end(), [](std::uint64_t bits) { return bits == 0; });
  // At the end of what the grammar allows, and where the vocabulary cannot go on with it, the answer ends.
  std::vector<std::pair<std::int32_t, float>> ends;
  if (nothing_fits || matcher_->accepts()) {
    for (const std::int32_t token : rules_->end_tokens) {
      if (in_row(token, logits)) ends.emplace_back(token, logits[static_cast<std::size_t>(token)]);
    }
  }
  const grammar::TokenTable& tokens = matcher_->tokens();
  for (std::size_t token = 0; token < logits.size(); ++token) {
    const bool fits = token / 64 < mask.size() && grammar::holds(mask, token);
    if (!fits && !(just_thought_ && is_line_break(tokens.bytes(static_cast<std::int32_t>(token))))) {
      logits[token] = impossible;
    }
  }
  for (const auto& [token, logit] : ends) logits[static_cast<std::size_t>(token)] = logit;
}

void TokenSteering::keep_going(std::span<float> logits) const {
  std::vector<std::pair<std::int32_t, float>> ends;
  for (const std::int32_t token : rules_->end_tokens) {
    if (!in_row(token, logits)) continue;
    ends.emplace_back(token, logits[static_cast<std::size_t>(token)]);
    logits[static_cast<std::size_t>(token)] = impossible;
  }
  if (any_possible(logits)) return;
  for (const auto& [token, logit] : ends) logits[static_cast<std::size_t>(token)] = logit;
}

}  // namespace shoal
