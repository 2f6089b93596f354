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
  /// Memory of all that is known of it, in bytes, as good as.
  std::size_t bytes() const;
  /// Lets go of it, now or when what is unfinished is done: that would never come to its end if it were begun anew.
  void shrink();
  bool shrinks() const { return shrinks_; }

 private:
  /// A mask on the way.
  struct Unfinished {
    Automaton::State state;
    TokenMask mask;
    std::uint64_t work_left;
    std::size_t bytes_before;  // of the automaton
    std::size_t entry = 0;     // of the sorted tokens, the next to look at
    /// Neighbours share their beginnings: path[n] is where the first n bytes of the token at hand lead to.
    std::vector<Automaton::State> path;
    std::size_t walked = 0;  // bytes of the previous token that led somewhere
  };
  bool work_on(Unfinished& mask, Clock::time_point until);
  void forget();

  const std::shared_ptr<const Network> network_;
  std::shared_ptr<const TokenTable> tokens_;
  std::shared_ptr<Automaton> automaton_;
  std::unordered_map<Automaton::State, TokenMask> masks_;
  std::optional<Unfinished> unfinished_;
  bool shrinks_ = false;
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
  /// Goes over to what TokenGrammar::trim() began, so that the old can go.
  void catch_up();

 private:
  std::shared_ptr<TokenGrammar> grammar_;
  std::shared_ptr<Automaton> automaton_;  // whose state this is
  Automaton::State state_;
};

/// The grammars that answers are bound to and those of late, so that answers with the same one share what was found out
/// about it.
class GrammarCache {
 public:
  explicit GrammarCache(std::shared_ptr<const TokenTable> tokens, std::size_t max_bytes = 256 << 20)
      : tokens_(std::move(tokens)), max_bytes_(max_bytes) {}
  /// Throws Error when the text is no grammar.
  std::shared_ptr<TokenGrammar> get(const std::string& gbnf);
  /// Holds the memory of all of them together to `max_bytes`, as long as what each needs at least is less. To be called
  /// again and again: it does little at a time.
  void trim();
  std::size_t bytes() const;

 private:
  const std::shared_ptr<const TokenTable> tokens_;
  const std::size_t max_bytes_;
  std::list<std::pair<std::string, std::shared_ptr<TokenGrammar>>> recent_;  // the latest first
};

}  // namespace shoal::grammar
