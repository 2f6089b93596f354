#include "runtime/grammar/token_grammar.h"

#include <algorithm>

#include "runtime/grammar/gbnf.h"

namespace shoal::grammar {
namespace {

constexpr std::size_t max_bytes = 32 << 20;  // of states kept
constexpr std::size_t max_masks = 1024;
constexpr std::size_t max_cached_grammars = 32;
constexpr std::uint64_t max_work_per_mask = 4000000;  // places; JSON takes some thousand
constexpr std::uint64_t max_work_per_token = 1000000;

}  // namespace

TokenGrammar::TokenGrammar(std::string_view gbnf, std::shared_ptr<const TokenTable> tokens)
    : network_(std::make_shared<const Network>(parse_gbnf(gbnf))),
      tokens_(std::move(tokens)),
      automaton_(std::make_shared<Automaton>(network_)),
      none_((tokens_->vocab_size() + 63) / 64) {}

std::shared_ptr<Automaton> TokenGrammar::automaton() {
  if (automaton_->bytes() > max_bytes) {
    masks_.clear();
    automaton_ = std::make_shared<Automaton>(network_);
  }
  return automaton_;
}

const TokenMask& TokenGrammar::allowed(Automaton::State state) {
  if (state == Automaton::dead) return none_;
  if (const auto known = masks_.find(state); known != masks_.end()) return known->second;
  if (masks_.size() >= max_masks) masks_.clear();
  return masks_[state] = make_mask(state);
}

TokenMask TokenGrammar::make_mask(Automaton::State state) {
  automaton_->stop_at(automaton_->work() + max_work_per_mask);
  TokenMask mask(none_.size());
  // Neighbours share their beginnings: path[n] is where the first n bytes of the token at hand lead to.
  std::vector<Automaton::State> path{state};
  std::size_t walked = 0;  // bytes of the previous token that led somewhere
  for (const TokenTable::Entry& entry : tokens_->sorted()) {
    const std::string_view bytes = tokens_->bytes(entry.id);
    if (entry.common > walked) continue;  // it begins with what was a dead end
    walked = entry.common;
    path.resize(bytes.size() + 1);
    Automaton::State at = path[walked];
    while (walked < bytes.size()) {
      at = automaton_->after(at, static_cast<std::uint8_t>(bytes[walked]));
      if (at == Automaton::dead) break;
      path[++walked] = at;
    }
    if (walked < bytes.size()) continue;
    const auto id = static_cast<std::size_t>(entry.id);
    mask[id / 64] |= std::uint64_t{1} << (id % 64);
  }
  return mask;
}

Matcher::Matcher(std::shared_ptr<TokenGrammar> grammar)
    : grammar_(std::move(grammar)), automaton_(grammar_->automaton()), state_(automaton_->start()) {}

void Matcher::catch_up() {
  auto latest = grammar_->automaton();
  if (latest == automaton_) return;
  state_ = latest->adopt(*automaton_, state_);
  automaton_ = std::move(latest);
}

bool Matcher::push(std::string_view bytes) {
  catch_up();
  automaton_->stop_at(automaton_->work() + max_work_per_token);
  for (const char c : bytes) state_ = automaton_->after(state_, static_cast<std::uint8_t>(c));
  return state_ != Automaton::dead;
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
    if (recent_.size() > max_cached_grammars) recent_.pop_back();
  }
  return recent_.front().second;
}

}  // namespace shoal::grammar
