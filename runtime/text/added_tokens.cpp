#include "runtime/text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/error.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

/// Bounds the time one position of a text can take.
constexpr size_t kMaxContentBytes = 1024;

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      // Joiners, and the circled and squared letters, which are alphabetic symbols.
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  }
}

/// The start of the character that ends before `end` (> 0).
size_t character_before(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool word_before(std::string_view text, size_t end) {
  return end > 0 && is_word_character(decode_utf8(text, character_before(text, end)).value);
}

bool word_after(std::string_view text, size_t at) {
  return at < text.size() && is_word_character(decode_utf8(text, at).value);
}

size_t skip_space_before(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t at = character_before(text, end);
    if (!is_white_space(decode_utf8(text, at).value)) break;
    end = at;
  }
  return end;
}

size_t skip_space_after(std::string_view text, size_t at) {
  while (at < text.size()) {
    const CodePoint c = decode_utf8(text, at);
    if (!is_white_space(c.value)) break;
    at += c.size;
  }
  return at;
}

}  // namespace

uint32_t StringSet::child(uint32_t node, uint8_t byte) const {
  for (const auto& [label, target] : nodes_[node].children)
    if (label == byte) return target;
  return 0;
}

void StringSet::add(std::string_view text, int32_t value) {
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back();
      nodes_[node].children.emplace_back(byte, next);
      if (node == 0) first_[byte] = next;
    }
    node = next;
  }
  if (nodes_[node].value < 0) nodes_[node].value = value;
}

std::optional<StringSet::Match> StringSet::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    uint32_t node = first_[static_cast<uint8_t>(text[begin])];
    std::optional<Match> longest;
    for (size_t at = begin + 1; node != 0; ++at) {
      if (nodes_[node].value >= 0) longest = Match{{begin, at}, nodes_[node].value};
      if (at == text.size()) break;
      node = child(node, static_cast<uint8_t>(text[at]));
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

AddedTokens AddedTokens::from_json(const JsonField& json, const Vocabulary& vocabulary, const Normalizer& normalizer) {
  AddedTokens out;
  for (const JsonField& entry : json.elements()) {
    AddedToken token;
    token.content = entry.at("content").as_string();
    token.id = static_cast<int32_t>(entry.at("id").as_int(0, kMaxTokenId));
    token.special = entry.bool_or("special", false);
    token.left_strip = entry.bool_or("lstrip", false);
    token.right_strip = entry.bool_or("rstrip", false);
    token.single_word = entry.bool_or("single_word", false);
    token.normalized = entry.bool_or("normalized", !token.special);
    out.add(std::move(token), vocabulary, normalizer, entry.place());
  }
  return out;
}

void AddedTokens::add(AddedToken token, const Vocabulary& vocabulary, const Normalizer& normalizer,
                      const std::string& place) {
  if (token.content.empty()) return;  // as `tokenizers` does
  if (token.content.size() > kMaxContentBytes)
    fail("{}.content: {} bytes is more than the {} supported", place, token.content.size(), kMaxContentBytes);
  const auto in_vocabulary = vocabulary.find(token.content);
  if (in_vocabulary && *in_vocabulary != token.id)
    fail("{}.id: `{}` has id {} here and {} in the vocabulary", place, token.content, token.id, *in_vocabulary);
  if (!in_vocabulary && vocabulary.token(token.id))
    fail("{}.id: {} is `{}` here and `{}` in the vocabulary", place, token.id, token.content,
         *vocabulary.token(token.id));
  const auto [by_content, is_new] = by_content_.emplace(token.content, tokens_.size());
  if (!is_new) fail("{}.content: `{}` appears twice", place, token.content);
  if (!by_id_.emplace(token.id, tokens_.size()).second) fail("{}.id: {} belongs to two tokens", place, token.id);
  const auto index = static_cast<int32_t>(tokens_.size());
  id_end_ = std::max(id_end_, token.id + 1);
  token.text = token.normalized ? normalizer.apply(token.content) : token.content;
  // A token whose normalized form is empty is never found.
  if (!token.text.empty()) (token.normalized ? normalized_ : as_given_).add(token.text, index);
  tokens_.push_back(std::move(token));
}

std::vector<Segment> AddedTokens::split(std::string_view text, bool normalized, bool parse_special) const {
  const StringSet& set = normalized ? normalized_ : as_given_;
  std::vector<Segment> segments;
  size_t done = 0;
  size_t from = 0;
  while (const auto match = set.find(text, from)) {
    from = match->range.end;
    const AddedToken& token = tokens_[static_cast<size_t>(match->value)];
    if (token.special && !parse_special) continue;
    auto [begin, end] = match->range;
    if (token.single_word && (word_before(text, begin) || word_after(text, end))) continue;
    if (token.left_strip) begin = std::max(skip_space_before(text, begin), done);
    if (token.right_strip) end = skip_space_after(text, end);
    if (done < begin) segments.push_back({{done, begin}, std::nullopt});
    segments.push_back({{begin, end}, token.id});
    done = end;
  }
  if (done < text.size()) segments.push_back({{done, text.size()}, std::nullopt});
  return segments;
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &tokens_[it->second];
}

std::optional<int32_t> AddedTokens::id_of(std::string_view content) const {
  const auto it = by_content_.find(std::string(content));
  if (it == by_content_.end()) return std::nullopt;
  return tokens_[it->second].id;
}

}  // namespace shoal::text
