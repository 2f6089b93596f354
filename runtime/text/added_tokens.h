#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/text/json_field.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/regex.h"
#include "runtime/text/vocabulary.h"

namespace shoal::text {

/// A token that is looked for in the text itself, before the model sees it.
struct AddedToken {
  std::string content;
  std::string text;  // what it decodes to: its content, normalized where it is looked for in normalized text
  int32_t id = -1;
  bool special = false;      // skipped in decoding when asked; taken as plain text when specials are not to be parsed
  bool left_strip = false;   // takes the white space before it
  bool right_strip = false;  // takes the white space after it
  bool single_word = false;  // only where no word character touches it
  bool normalized = false;   // looked for in the normalized text rather than in the text as given
};

/// A set of strings, found in a text from left to right, the longest first.
class StringSet {
 public:
  /// Adds a string (not empty) that stands for `value` (>= 0); a string added before keeps its value.
  void add(std::string_view text, int32_t value);

  struct Match {
    ByteRange range;
    int32_t value;
  };
  /// The leftmost match that begins at or after `from`, the longest of those that begin there.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  struct Node {
    int32_t value = -1;
    std::vector<std::pair<uint8_t, uint32_t>> children;
  };
  uint32_t child(uint32_t node, uint8_t byte) const;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::vector<uint32_t> first_ = std::vector<uint32_t>(256, 0);  // the root's children; 0 where there is none
};

/// A part of a text: an added token, or what lies between.
struct Segment {
  ByteRange range;
  std::optional<int32_t> id;
};

/// The "added_tokens" of tokenizer.json.
class AddedTokens {
 public:
  AddedTokens() = default;
  /// Throws Error where a token contradicts the vocabulary.
  static AddedTokens from_json(const JsonField& json, const Vocabulary& vocabulary, const Normalizer& normalizer);

  /// Finds the added tokens in `text`: those with `normalized` or those without. With parse_special false, special
  /// tokens are left as text.
  std::vector<Segment> split(std::string_view text, bool normalized, bool parse_special) const;

  const AddedToken* find(int32_t id) const;
  std::optional<int32_t> id_of(std::string_view content) const;
  /// One more than the largest id; 0 where there are none.
  int32_t id_end() const { return id_end_; }

 private:
  void add(AddedToken token, const Vocabulary& vocabulary, const Normalizer& normalizer, const std::string& place);

  std::vector<AddedToken> tokens_;
  std::unordered_map<int32_t, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  StringSet as_given_, normalized_;  // values are indices into tokens_
  int32_t id_end_ = 0;
};

}  // namespace shoal::text
