#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/utf8_ranges.h"
#include "runtime/text/utf8.h"

namespace shoal::grammar {
namespace {

constexpr int max_groups_deep = 100;

std::string written(char32_t code) {
  const bool plain = (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z') || (code >= '0' && code <= '9') ||
                     code == ' ' || code == '_' || code == ',' || code == ':' || code == '{' || code == '}';
  if (plain) return std::string(1, static_cast<char>(code));
  const auto number = static_cast<std::uint32_t>(code);
  return code < 0x100     ? fmt::format("\\x{:02X}", number)
         : code < 0x10000 ? fmt::format("\\u{:04X}", number)
                          : fmt::format("\\U{:08X}", number);
}

CharacterRanges intersection(const CharacterRanges& a, const CharacterRanges& b) {
  CharacterRanges out;
  for (const auto& [low, high] : a) {
    for (const auto& [from, to] : b) {
      if (std::max(low, from) <= std::min(high, to)) out.emplace_back(std::max(low, from), std::min(high, to));
    }
  }
  return out;
}

/// How JSON writes a character that cannot stand in a string as it is.
std::string json_escape(char32_t code) {
  switch (code) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\n':
      return "\\n";
    case '\t':
      return "\\t";
    case '\r':
      return "\\r";
    case '\b':
      return "\\b";
    case '\f':
      return "\\f";
    default:
      return fmt::format("\\u{:04x}", static_cast<std::uint32_t>(code));
  }
}

class RegexWriter {
 public:
  RegexWriter(std::string_view regex, Quoting quoting) : regex_(regex), quoting_(quoting) {}

  std::string write(bool whole) {
    if (regex_.size() > max_gbnf_bytes) wrong(fmt::format("it is longer than {} bytes", max_gbnf_bytes));
    std::string out;
    do {
      const bool from_start = take('^') || whole;
      std::string branch = sequence(0);
      const bool to_end = take('$') || whole;
      const std::string anything = characters(complement({})) + "*";
      if (!from_start) branch = anything + " " + branch;
      if (!to_end) branch += " " + anything;
      add(out, (out.empty() ? "" : " | ") + branch);
    } while (take('|'));
    if (at_ < regex_.size()) wrong(fmt::format("'{}' is not expected", regex_[at_]));
    return "(" + out + ")";
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    fail("the regular expression '{}', character {}: {}", std::string(regex_.substr(0, 200)), at_ + 1, what);
  }
  /// A character that may be many in JSON takes a hundred times its size.
  void add(std::string& out, const std::string& more) const {
    if (out.size() + more.size() > max_gbnf_bytes)
      wrong(fmt::format("it makes a grammar of more than {} bytes", max_gbnf_bytes));
    out += more;
  }
  char peek() const { return at_ < regex_.size() ? regex_[at_] : '\0'; }
  bool take(char c) {
    if (at_ >= regex_.size() || regex_[at_] != c) return false;
    ++at_;
    return true;
  }

  std::string choice(int depth) {
    if (depth > max_groups_deep) wrong("it is nested too deep");
    std::string out = sequence(depth);
    while (take('|')) add(out, " | " + sequence(depth));
    return "(" + out + ")";
  }

  std::string sequence(int depth) {
    std::string out = "\"\"";
    while (at_ < regex_.size() && peek() != '|' && peek() != ')' && !(depth == 0 && peek() == '$')) {
      add(out, " " + repeated(atom(depth)));
    }
    return out;
  }

  std::string atom(int depth) {
    const char c = peek();
    if (c == '(') {
      ++at_;
      if (take('?') && !take(':')) wrong("only groups (...) and (?:...) can be expressed");
      std::string inner = choice(depth + 1);
      if (!take(')')) wrong("')' is missing");
      return inner;
    }
    if (c == '[') return characters(bracket());
    if (c == '.') {
      ++at_;
      return characters(complement({{'\n', '\n'}, {'\r', '\r'}}));
    }
    if (c == '*' || c == '+' || c == '?' || c == '{') wrong("there is nothing to repeat");
    if (c == '^' || c == '$') wrong(fmt::format("'{}' can only stand at an end", c));
    return characters(character());
  }

  std::string repeated(const std::string& item) {
    std::string times;
    if (peek() == '*' || peek() == '+' || peek() == '?') {
      times = regex_[at_++];
    } else if (peek() == '{') {
      const auto end = regex_.find('}', at_);
      if (end == regex_.npos) wrong("'}' is missing");
      times = regex_.substr(at_, end + 1 - at_);
      if (times.find_first_not_of("0123456789,{}") != times.npos || times.size() < 3 || times[1] == ',') {
        wrong("a repetition is {m}, {m,} or {m,n}");
      }
      at_ = end + 1;
    } else {
      return item;
    }
    take('?');  // whether it is lazy changes what groups hold, not what matches
    return "(" + item + ")" + times;
  }

  char32_t code_point() {
    const auto decoded = text::decode_utf8(regex_, at_);
    if (!decoded.valid) wrong("it is not valid UTF-8");
    at_ += decoded.size;
    return decoded.value;
  }

  /// A character, or a class written with a backslash.
  CharacterRanges character() {
    if (!take('\\')) {
      const char32_t code = code_point();
      return {{code, code}};
    }
    if (at_ >= regex_.size()) wrong("a character is missing behind '\\'");
    const char c = regex_[at_];
    static const CharacterRanges digits = {{'0', '9'}}, words = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
                                 spaces = {{'\t', '\r'}, {' ', ' '}, {0xA0, 0xA0}, {0x2028, 0x2029}, {0xFEFF, 0xFEFF}};
    const auto one = [&](char32_t code) {
      ++at_;
      return CharacterRanges{{code, code}};
    };
    switch (c) {
      case 'd':
        ++at_;
        return digits;
      case 'D':
        ++at_;
        return complement(digits);
      case 'w':
        ++at_;
        return words;
      case 'W':
        ++at_;
        return complement(words);
      case 's':
        ++at_;
        return spaces;
      case 'S':
        ++at_;
        return complement(spaces);
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'x':
        return hexadecimal(2);
      case 'u':
        return hexadecimal(4);
      default:
        break;
    }
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')) {
      wrong(fmt::format("'\\{}' cannot be expressed", c));
    }
    const char32_t code = code_point();
    return {{code, code}};
  }

  CharacterRanges hexadecimal(std::size_t digits) {
    const std::string text(regex_.substr(at_ + 1, digits));
    if (text.size() != digits || text.find_first_not_of("0123456789abcdefABCDEF") != text.npos) {
      wrong("hexadecimal digits are missing");
    }
    at_ += 1 + digits;
    const auto code = static_cast<char32_t>(std::stoul(text, nullptr, 16));
    return {{code, code}};
  }

  CharacterRanges bracket() {
    ++at_;
    const bool negated = take('^');
    CharacterRanges all;
    while (peek() != ']') {
      if (at_ >= regex_.size()) wrong("']' is missing");
      CharacterRanges low = character();
      const bool single = low.size() == 1 && low[0].first == low[0].second;
      if (single && peek() == '-' && at_ + 1 < regex_.size() && regex_[at_ + 1] != ']') {
        ++at_;
        const CharacterRanges high = character();
        if (high.size() != 1 || high[0].first != high[0].second || high[0].first < low[0].first) {
          wrong("a range's ends are in the wrong order");
        }
        low[0].second = high[0].first;
      }
      all.insert(all.end(), low.begin(), low.end());
    }
    ++at_;
    return negated ? complement(std::move(all)) : all;
  }

  std::string characters(const CharacterRanges& ranges) const {
    if (quoting_ == Quoting::none) return gbnf_class(ranges);
    static const CharacterRanges special = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
    std::string out;
    if (const auto plain = intersection(ranges, complement(special)); !plain.empty()) out = gbnf_class(plain);
    for (const auto& [low, high] : intersection(ranges, special)) {
      for (char32_t code = low; code <= high; ++code) {
        out += (out.empty() ? "" : " | ") + gbnf_literal(json_escape(code));
      }
    }
    return out.empty() ? gbnf_class({}) : "(" + out + ")";
  }

  std::string_view regex_;
  const Quoting quoting_;
  std::size_t at_ = 0;
};

}  // namespace

std::string gbnf_literal(std::string_view text) {
  std::string out = "\"";
  for (std::size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    out += written(c.valid ? c.value : 0xFFFD);
    at += c.size;
  }
  return out + "\"";
}

std::string gbnf_class(const CharacterRanges& ranges) {
  std::string out = "[";
  for (const auto& [low, high] : ranges) {
    out += written(low);
    if (high > low) out += "-" + written(high);
  }
  return out + "]";
}

std::string gbnf_of_regex(std::string_view regex, Quoting quoting, bool whole) {
  return RegexWriter(regex, quoting).write(whole);
}

}  // namespace shoal::grammar
