#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>

#include "runtime/grammar/token_grammar.h"
#include "runtime/token_rules.h"

namespace shoal {

/// Applies one answer's TokenRules: knows what was said and what may be said next. A copy goes its own way, which lets
/// drafts be tried.
class TokenSteering {
 public:
  /// `grammars` is needed where the rules have a grammar. Throws Error when that is none.
  TokenSteering(const TokenRules& rules, grammar::GrammarCache* grammars);

  /// A token became part of the answer.
  void push(std::int32_t token);
  /// What comes next, whatever the model thinks.
  std::optional<std::int32_t> forced() const;
  /// Whether apply() takes next to no time; works towards that until then where it does not.
  bool prepare(std::chrono::steady_clock::time_point until);
  /// Changes a row of logits [vocab] so that sampling from it keeps to the rules. Leaves at least one token possible.
  void apply(std::span<float> logits);

 private:
  void penalize(std::span<float> logits) const;
  void keep_to_grammar(std::span<float> logits);
  void keep_going(std::span<float> logits) const;
  void advance_grammar(std::int32_t token);
  /// Follows the answer through the grammar until then, and a little even if that has passed; true when that is done.
  bool follow(std::chrono::steady_clock::time_point until);

  std::shared_ptr<const TokenRules> rules_;
  std::unordered_map<std::int32_t, int> counts_;  // of the answer's tokens
  int tokens_ = 0;
  bool thinking_;
  std::size_t closing_ = 0;  // said of what ends the thinking
  bool is_closing_ = false;
  std::optional<grammar::Matcher> matcher_;
  // What the matcher has to take yet, from here on. A long answer that was interrupted comes back at once.
  std::string answer_;
  std::size_t followed_ = 0;
  bool just_thought_ = false;  // the answer begins with the next token that is no line break
};

}  // namespace shoal
