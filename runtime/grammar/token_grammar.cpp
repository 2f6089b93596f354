#include "runtime/grammar/token_grammar.h"

#include <algorithm>

#include "runtime/grammar/gbnf.h"

namespace shoal::grammar {
namespace {

constexpr std::size_t max_bytes = 32 << 20;                 // of states kept
constexpr std::size_t max_bytes_while_shrinking = 8 << 20;  // of those found for one mask; a long enum takes 1 MB
constexpr std::size_t max_masks = 1024;
constexpr std::size_t max_cached_grammars = 32;
constexpr std::uint64_t max_work_per_mask = 4000000;  // places; JSON takes some thousand

}  // namespace

TokenGrammar::TokenGrammar(std::string_view gbnf, std::shared_ptr<const TokenTable> tokens)
    : network_(std::make_shared<const Network>(parse_gbnf(gbnf))),
      tokens_(std::move(tokens)),
      automaton_(std::make_shared<Automaton>(network_)),
      none_((tokens_->vocab_size() + 63) / 64) {}

void TokenGrammar::trim() {
  // What is unfinished is worth waiting for, unless it is too much by itself.
  if (automaton_->bytes() > max_bytes * (unfinished_ ? 4 : 1) || (shrinks_ && !unfinished_)) forget();
}

void TokenGrammar::forget() {
  masks_.clear();
  unfinished_.reset();
  automaton_ = std::make_shared<Automaton>(network_);
  shrinks_ = false;
}

void TokenGrammar::shrink() {
  shrinks_ = true;
  trim();
}

std::size_t TokenGrammar::bytes() const {
  return sizeof(Network::Node) * network_->nodes.size() + sizeof(std::int32_t) * network_->ways.size() +
         automaton_->bytes() + sizeof(std::uint64_t) * none_.size() * masks_.size();
}

const TokenMask& TokenGrammar::allowed(Automaton::State state) {
  if (state == Automaton::dead) return none_;
  prepare(state, Clock::time_point::max());
  return masks_.at(state);
}

bool TokenGrammar::prepare(Automaton::State state, Clock::time_point until) {
  if (state == Automaton::dead) return true;
  while (!masks_.contains(state)) {
    // One at a time, whoever began it: so memory has a bound.
    if (!unfinished_)
      unfinished_.emplace(
          Unfinished{state, TokenMask(none_.size()), max_work_per_mask, automaton_->bytes(), 0, {state}, 0});
    if (!work_on(*unfinished_, until)) return false;
    if (masks_.size() >= max_masks) masks_.clear();
    masks_[unfinished_->state] = std::move(unfinished_->mask);
    unfinished_.reset();
  }
  return true;
}

bool TokenGrammar::work_on(Unfinished& m, Clock::time_point until) {
  // Between looks at the clock, the first of which comes when something is done: so it ends, however little time it
  // gets.
  constexpr std::uint64_t most_work = 1000;
  constexpr std::size_t most_entries = 256;
  const std::size_t most_bytes = shrinks_ ? m.bytes_before + max_bytes_while_shrinking : 4 * max_bytes;
  const std::uint64_t before = automaton_->work();
  automaton_->stop_at(before + m.work_left);
  const auto& entries = tokens_->sorted();
  std::uint64_t look_at = before + most_work;
  std::size_t look_at_entry = m.entry + most_entries;
  bool in_time = true;
  for (; m.entry < entries.size(); ++m.entry) {
    if (automaton_->work() >= look_at || m.entry >= look_at_entry) {
      in_time = Clock::now() < until;
      if (!in_time) break;
      if (automaton_->bytes() > most_bytes) automaton_->stop_at(0);  // nothing new is followed any more
      look_at = automaton_->work() + most_work;
      look_at_entry = m.entry + most_entries;
    }
    const TokenTable::Entry& entry = entries[m.entry];
    const std::string_view bytes = tokens_->bytes(entry.id);
    if (entry.common > m.walked) continue;  // it begins with what was a dead end
    m.walked = entry.common;
    m.path.resize(bytes.size() + 1);
    Automaton::State at = m.path[m.walked];
    while (m.walked < bytes.size()) {
      at = automaton_->after(at, static_cast<std::uint8_t>(bytes[m.walked]));
      if (at == Automaton::dead) break;
      m.path[++m.walked] = at;
    }
    if (m.walked < bytes.size()) continue;
    const auto id = static_cast<std::size_t>(entry.id);
    m.mask[id / 64] |= std::uint64_t{1} << (id % 64);
  }
  m.work_left -= std::min(m.work_left, automaton_->work() - before);
  return in_time;
}

Matcher::Matcher(std::shared_ptr<TokenGrammar> grammar)
    : grammar_(std::move(grammar)), automaton_(grammar_->automaton()), state_(automaton_->start()) {}

void Matcher::catch_up() {
  const auto& latest = grammar_->automaton();
  if (latest == automaton_) return;
  state_ = latest->adopt(*automaton_, state_);
  automaton_ = latest;
}

bool Matcher::push(std::string_view bytes) {
  catch_up();
  automaton_->stop_at(~std::uint64_t{0});
  for (const char c : bytes) state_ = automaton_->after(state_, static_cast<std::uint8_t>(c));
  grammar_->trim();  // behind what was known of this token
  catch_up();
  return state_ != Automaton::dead;
}

bool Matcher::prepare(TokenGrammar::Clock::time_point until) {
  if (grammar_->shrinks()) grammar_->trim();  // before other answers' masks are begun one after the other
  catch_up();
  return grammar_->prepare(state_, until);
}

const TokenMask& Matcher::allowed() {
  catch_up();
  return grammar_->allowed(state_);
}

bool Matcher::accepts() const { return state_ != Automaton::dead && automaton_->accepts(state_); }

std::shared_ptr<TokenGrammar> GrammarCache::get(const std::string& gbnf) {
  const auto known =
      std::find_if(recent_.begin(), recent_.end(), [&](const auto& entry) { return entry.first == gbnf; });
  if (known != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, known);
  } else {
    recent_.emplace_front(gbnf, std::make_shared<TokenGrammar>(gbnf, tokens_));
  }
  return recent_.front().second;
}

std::size_t GrammarCache::bytes() const {
  std::size_t all = 0;
  for (const auto& [gbnf, grammar] : recent_) all += grammar->bytes();
  return all;
}

void GrammarCache::trim() {
  std::size_t all = bytes();
  for (auto at = recent_.end(); at != recent_.begin();) {
    --at;
    if (recent_.size() <= max_cached_grammars && all <= max_bytes_) return;
    if (at->second.use_count() > 1) continue;
    all -= at->second->bytes();
    at = recent_.erase(at);
  }
  if (all <= max_bytes_) return;
  // Those that answers are bound to are too much. If any of them was made to explode, the largest was.
  TokenGrammar* largest = nullptr;
  for (const auto& [gbnf, grammar] : recent_) {
    if (grammar->shrinks()) {
      all -= grammar->bytes();
    } else if (!largest || grammar->bytes() > largest->bytes()) {
      largest = grammar.get();
    }
  }
  if (all > max_bytes_ && largest) largest->shrink();
}

}  // namespace shoal::grammar
