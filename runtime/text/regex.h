#pragma once
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

namespace shoal::text {

/// A range of bytes [begin, end) of a text.
struct ByteRange {
  size_t begin;
  size_t end;
};

/// A compiled pattern. Immutable and safe to use from many threads.
class Regex {
 public:
  /// Compiles an Oniguruma pattern, as tokenizer.json files hold it. Throws Error beginning with `place`.
  static Regex compile(std::string_view pattern, std::string_view place);
  /// A pattern that matches exactly `text`.
  static Regex literal(std::string_view text, std::string_view place);

  /// Replaces `matches` by all matches in `text` (valid UTF-8), from left to right, none overlapping; an empty match
  /// right after another match is left out. Throws Error where the pattern takes too many steps on this text.
  void find_all(std::string_view text, std::vector<ByteRange>& matches) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace shoal::text
