#pragma once
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
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

  using Clock = std::chrono::steady_clock;

  const TokenTable& tokens() const { return *tokens_; }
  /// The tokens that may follow an answer that has led to this state of automaton(); none where no token does.
  const TokenMask& allowed(Automaton::State state);
  /// Works on what allowed() needs until then, and a little even if that has passed; true when it is there. A grammar
  /// may be made so that this takes long.
  bool prepare(Automaton::State state, Clock::time_point until);
  const std::shared_ptr<Automaton>& automaton() const { return automaton_; }
  /// Begins another automaton when the states seen take much memory. Who holds a state of the old one takes it along
  /// (Automaton::adopt).
  void trim();

 private:
  /// A mask on the way.
  struct Unfinished {
    Automaton::State state;
    TokenMask mask;
    std::uint64_t work_left;
    std::size_t entry = 0;  // of the sorted tokens, the next to look at
    /// Neighbours share their beginnings: path[n] is where the first n bytes of the token at hand lead to.
    std::vector<Automaton::State> path;
    std::size_t walked = 0;  // bytes of the previous token that led somewhere
  };
  bool work_on(Unfinished& mask, Clock::time_point until);

  const std::shared_ptr<const Network> network_;
  std::shared_ptr<const TokenTable> tokens_;
  std::shared_ptr<Automaton> automaton_;
  std::unordered_map<Automaton::State, TokenMask> masks_;
  std::optional<Unfinished> unfinished_;
  TokenMask none_;
};

/// How far one answer has matched.
class Matcher {
 public:
  explicit Matcher(std::shared_ptr<TokenGrammar> grammar);

  /// Takes a token's bytes. False, and the answer matches no more, when it does not fit.
  bool push(std::string_view bytes);
  const TokenMask& allowed();
  /// As TokenGrammar::prepare().
  bool prepare(TokenGrammar::Clock::time_point until);
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
