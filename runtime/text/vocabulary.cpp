#include "runtime/text/vocabulary.h"

#include "base/error.h"

namespace shoal::text {

Vocabulary::Vocabulary(const Vocabulary& other) : ids_(other.ids_), tokens_(other.tokens_.size()) {
  for (const auto& [token, id] : ids_) tokens_[static_cast<size_t>(id)] = &token;  // the copy's own keys
}

Vocabulary& Vocabulary::operator=(Vocabulary other) noexcept {
  ids_.swap(other.ids_);
  tokens_.swap(other.tokens_);
  return *this;
}

void Vocabulary::add(std::string token, int64_t id, std::string_view place) {
  if (id < 0 || id > kMaxTokenId) fail("{}: id {} of token `{}` is outside 0 to {}", place, id, token, kMaxTokenId);
  const auto index = static_cast<size_t>(id);
  if (index < tokens_.size() && tokens_[index])
    fail("{}: id {} belongs to both `{}` and `{}`", place, id, *tokens_[index], token);
  const auto [it, added] = ids_.emplace(std::move(token), static_cast<int32_t>(id));
  if (!added) fail("{}: token `{}` has two ids, {} and {}", place, it->first, it->second, id);
  if (index >= tokens_.size()) tokens_.resize(index + 1, nullptr);
  tokens_[index] = &it->first;
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const std::string* Vocabulary::token(int32_t id) const {
  return id >= 0 && id < id_end() ? tokens_[static_cast<size_t>(id)] : nullptr;
}

}  // namespace shoal::text
