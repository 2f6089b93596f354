#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/grammar/automaton.h"
#include "runtime/grammar/token_table.h"

namespace shoal::grammar {

/// One bit a token.
using TokenMask = std::vector<std::uint64_t>;
inline bool holds(const TokenMask& mask, std::size_t token) { return mask[token / 64] >> (token % 64) & 1; }

/// A grammar over the tokens of a model, shared by all answers that must match it. Not thread-safe.
class TokenGrammar {
 public:
  TokenGrammar(std::string_view gbnf, std::shared_ptr<const TokenTable> tokens);

  const TokenTable& tokens() const { return *tokens_; }
  /// The tokens that may follow an answer that has led to this state of automaton(); none where no token does.
  const TokenMask& allowed(Automaton::State state);
  /// Another one from time to time, when the states seen take much memory. Who holds a state of the old one takes it
  /// along (Automaton::adopt).
  std::shared_ptr<Automaton> automaton();

 private:
  TokenMask make_mask(Automaton::State state);

  const std::shared_ptr<const Network> network_;
  std::shared_ptr<const TokenTable> tokens_;
  std::shared_ptr<Automaton> automaton_;
  std::unordered_map<Automaton::State, TokenMask> masks_;
  TokenMask none_;
};

/// How far one answer has matched.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<TokenGrammar> grammar);

  /// Takes a token's bytes. False, and the answer matches no more, when it does not fit.
  bool push(std::string_view bytes);
  const TokenMask& allowed();
  /// The answer may end here.
  bool accepts() const;
  const TokenTable& tokens() const { return grammar_->tokens(); }

 private:
  void catch_up();

  std::shared_ptr<TokenGrammar> grammar_;
  std::shared_ptr<Automaton> automaton_;  // whose state this is
  Automaton::State state_;
};

/// The grammars of late, so that answers with the same one share what was found out about it.
class GrammarCache {
 public:
  explicit GrammarCache(std::shared_ptr<const TokenTable> tokens) : tokens_(std::move(tokens)) {}
  /// Throws Error when the text is no grammar.
  std::shared_ptr<TokenGrammar> get(const std::string& gbnf);

 private:
  std::shared_ptr<const TokenTable> tokens_;
  std::list<std::pair<std::string, std::shared_ptr<TokenGrammar>>> recent_;  // the latest first
};

}  // namespace shoal::grammar
