#include "runtime/text/jinja/lexer.h"

#include <algorithm>
#include <array>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/literal.h"
#include "runtime/text/utf8.h"

namespace shoal::jinja {
namespace {

/// With \n for \r\n and \r, and without the line end at the very end.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool all_space(std::string_view text) { return strip_left(text).empty(); }

/// Goes through a template in two states: text up to the next tag, and the inside of a tag.
class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(normalized(source)), source_(text_) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_data();
    emit(TokenKind::end);
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return source_.substr(at_); }
  bool at(std::string_view what) const { return rest().starts_with(what); }

  void advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at_ + bytes, '\n'));
    at_ += bytes;
  }
  /// Back to `place`.
  void seek(size_t place) {
    line_ -= static_cast<int>(std::count(source_.begin() + place, source_.begin() + at_, '\n'));
    at_ = place;
  }
  void skip_space() { advance(rest().size() - strip_left(rest()).size()); }

  void emit(TokenKind kind, std::string_view text = {}) {
    tokens_.push_back({.kind = kind, .line = line_, .text = std::string(text)});
  }

  /// The text up to a tag, without the white space that the tag's sign or lstrip_blocks takes away. `line_starting`:
  /// the text begins a line, as far as lstrip_blocks is concerned.
  void emit_data(std::string_view text, char sign, bool tag_prints, bool line_starting, int line) {
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && !tag_prints) {
      const size_t line_start = text.rfind('\n') + 1;  // 0 where there is none
      if ((line_start > 0 || line_starting) && all_space(text.substr(line_start))) text = text.substr(0, line_start);
    }
    if (!text.empty()) tokens_.push_back({.kind = TokenKind::data, .line = line, .text = std::string(text)});
  }

  /// The sign at the current place, a '-' or '+' of a tag's begin; 0 where there is none.
  char take_sign() {
    const char sign = at("-") || at("+") ? source_[at_] : '\0';
    if (sign) advance(1);
    return sign;
  }

  /// Takes "-%}" and the white space after it, "%}" and one line end, or where `plus`, "+%}" alone.
  bool take_end(std::string_view end, bool trims_newline, bool plus) {
    if (at("-") && rest().substr(1).starts_with(end)) {
      advance(1 + end.size());
      const size_t before = at_;
      skip_space();
      line_starting_ = at_ > before && source_[at_ - 1] == '\n';
    } else if (plus && at("+") && rest().substr(1).starts_with(end)) {
      advance(1 + end.size());
      line_starting_ = false;
    } else if (at(end)) {
      advance(end.size());
      line_starting_ = trims_newline && at("\n");
      if (line_starting_) advance(1);
    } else {
      return false;
    }
    return true;
  }

  void read_data() {
    size_t begin = at_;
    while ((begin = source_.find('{', begin)) != source_.npos) {
      const char next = begin + 1 < source_.size() ? source_[begin + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++begin;
    }
    if (begin == source_.npos) {
      emit(TokenKind::data, rest());
      advance(rest().size());
      return;
    }
    const char kind = source_[begin + 1];
    const std::string_view text = source_.substr(at_, begin - at_);
    const char sign = begin + 2 < source_.size() ? source_[begin + 2] : '\0';
    emit_data(text, sign, kind == '{', line_starting_, line_);
    advance(text.size() + 2);
    take_sign();
    if (kind == '#') {
      read_comment();
    } else if (kind == '{') {
      emit(TokenKind::variable_begin);
      read_tag(TokenKind::variable_end, "}}");
    } else if (!take_raw()) {
      emit(TokenKind::block_begin);
      read_tag(TokenKind::block_end, "%}");
    }
  }

  void read_comment() {
    const size_t end = source_.find("#}", at_);
    if (end == source_.npos) {
      // Jinja says nothing where there is nothing in the comment.
      if (at_ < source_.size()) syntax_fault(line_, "a comment has no end");
      return;
    }
    const bool sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+');
    advance(end - at_ - (sign ? 1 : 0));
    take_end("#}", true, true);
  }

  /// Takes `word` and the white space around it; none of it where it is not there.
  bool take_word(std::string_view word) {
    const size_t before = at_;
    skip_space();
    if (at(word)) {
      advance(word.size());
      skip_space();
      return true;
    }
    seek(before);
    return false;
  }

  /// A raw block, from behind its "{%".
  bool take_raw() {
    const size_t before = at_;
    if (!take_word("raw") || !take_end("%}", false, false)) {
      seek(before);
      return false;
    }
    const size_t begin = at_;
    const int begin_line = line_;
    const bool line_starting = line_starting_;
    for (size_t end = begin; (end = source_.find("{%", end)) != source_.npos; end += 2) {
      advance(end + 2 - at_);
      const char sign = take_sign();
      if (take_word("endraw") && take_end("%}", true, true)) {
        emit_data(source_.substr(begin, end - begin), sign, false, line_starting, begin_line);
        return true;
      }
      seek(end + 2);
    }
    if (begin < source_.size()) syntax_fault(begin_line, "a raw block has no end");
    return true;
  }

  void read_tag(TokenKind end_kind, std::string_view end) {
    const bool block = end_kind == TokenKind::block_end;
    std::string open;  // the brackets that are open, as their closing ones
    while (at_ < source_.size()) {
      const int line = line_;
      if (open.empty() && take_end(end, block, block)) {
        tokens_.push_back({.kind = end_kind, .line = line});
        return;
      }
      const auto c = text::decode_utf8(source_, at_);
      if (is_space(c.value)) {
        advance(c.size);
      } else if (const size_t digits = number_length(rest(), at_ > 0 && source_[at_ - 1] == '.')) {
        tokens_.push_back(number_token(rest().substr(0, digits), line_));
        advance(digits);
      } else if (is_word(c.value)) {
        read_name();
      } else if (c.value == '\'' || c.value == '"') {
        read_string();
      } else {
        read_operator(open);
      }
    }
    line_starting_ = false;
  }

  void read_name() {
    size_t end = at_;
    while (end < source_.size()) {
      const auto c = text::decode_utf8(source_, end);
      if (!is_word(c.value)) break;
      end += c.size;
    }
    const auto first = text::decode_utf8(source_, at_).value;
    if (first != '_' && !is_alphabetic(first)) syntax_fault(line_, "invalid character in an identifier");
    emit(TokenKind::name, source_.substr(at_, end - at_));
    advance(end - at_);
  }

  void read_string() {
    const char quote = source_[at_];
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) syntax_fault(line_, "a string has no end");
    emit(TokenKind::string, unescape(source_.substr(at_ + 1, end - at_ - 1), line_));
    advance(end + 1 - at_);
  }

  void read_operator(std::string& open) {
    static constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto found = std::find_if(kOperators.begin(), kOperators.end(), [this](auto op) { return at(op); });
    if (found == kOperators.end()) {
      syntax_fault(line_, "unexpected character '{}'", rest().substr(0, text::decode_utf8(source_, at_).size));
    }
    const char c = (*found)[0];
    if (c == '{' || c == '(' || c == '[') {
      open += c == '{' ? '}' : c == '(' ? ')' : ']';
    } else if (c == '}' || c == ')' || c == ']') {
      if (open.empty()) syntax_fault(line_, "unexpected '{}'", c);
      if (open.back() != c) syntax_fault(line_, "unexpected '{}', expected '{}'", c, open.back());
      open.pop_back();
    }
    emit(TokenKind::op, *found);
    advance(found->size());
  }

  std::string text_;
  std::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // the text from here on begins a line, as far as lstrip_blocks is concerned
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace shoal::jinja
