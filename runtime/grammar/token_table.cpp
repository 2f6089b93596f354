#include "runtime/grammar/token_table.h"

#include <algorithm>

namespace shoal::grammar {
namespace {

std::vector<std::string> texts_of(const Tokenizer& tokenizer, std::int32_t vocab_size) {
  std::vector<std::string> tokens(static_cast<std::size_t>(vocab_size));
  for (std::int32_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id) {
    if (!tokenizer.is_special(id)) tokens[static_cast<std::size_t>(id)] = tokenizer.token_bytes(id);
  }
  return tokens;
}

}  // namespace

TokenTable::TokenTable(const Tokenizer& tokenizer, std::int32_t vocab_size)
    : TokenTable(texts_of(tokenizer, vocab_size)) {}

TokenTable::TokenTable(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    if (!tokens_[id].empty()) sorted_.push_back({static_cast<std::int32_t>(id), 0});
  }
  std::sort(sorted_.begin(), sorted_.end(),
            [this](const Entry& a, const Entry& b) { return bytes(a.id) < bytes(b.id); });
  for (std::size_t i = 1; i < sorted_.size(); ++i) {
    const std::string_view before = bytes(sorted_[i - 1].id), here = bytes(sorted_[i].id);
    const auto differ = std::mismatch(before.begin(), before.end(), here.begin(), here.end()).second;
    sorted_[i].common = static_cast<std::uint32_t>(differ - here.begin());
  }
}

std::string_view TokenTable::bytes(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= tokens_.size()) return {};
  return tokens_[static_cast<std::size_t>(id)];
}

}  // namespace shoal::grammar
