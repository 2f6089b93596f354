#include "runtime/text/regex_syntax.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>
#include <vector>

#include "base/error.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

// Members of a character class, to be put between brackets.
// PCRE2's own \s also takes U+180E, which is no white space in today's Unicode.
constexpr std::string_view kSpace =
    R"(\x09-\x0D\x20\x85\xA0\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x00-\x08\x0E-\x1F\x21-\x84\x86-\x9F\xA1-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027}\x{202A}-\x{202E}\x{2030}-)"
    R"(\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
// Alphabetic, marks, decimal digits and connectors. PCRE2 before 10.40 has no \p{Alphabetic}: it is the letters, the
// letter numbers, some marks, and the circled and squared letters spelled out here.
constexpr std::string_view kWord =
    R"(\p{L}\p{M}\p{Nl}\p{Nd}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
constexpr std::string_view kHex = "0-9A-Fa-f";

struct LongCategory {
  std::string_view name;
  std::string_view category;
};
constexpr std::array kLongCategories = {
    LongCategory{"letter", "L"},
    LongCategory{"lowercaseletter", "Ll"},
    LongCategory{"uppercaseletter", "Lu"},
    LongCategory{"titlecaseletter", "Lt"},
    LongCategory{"modifierletter", "Lm"},
    LongCategory{"otherletter", "Lo"},
    LongCategory{"mark", "M"},
    LongCategory{"nonspacingmark", "Mn"},
    LongCategory{"spacingmark", "Mc"},
    LongCategory{"enclosingmark", "Me"},
    LongCategory{"number", "N"},
    LongCategory{"decimalnumber", "Nd"},
    LongCategory{"letternumber", "Nl"},
    LongCategory{"othernumber", "No"},
    LongCategory{"punctuation", "P"},
    LongCategory{"symbol", "S"},
    LongCategory{"mathsymbol", "Sm"},
    LongCategory{"currencysymbol", "Sc"},
    LongCategory{"modifiersymbol", "Sk"},
    LongCategory{"othersymbol", "So"},
    LongCategory{"separator", "Z"},
    LongCategory{"spaceseparator", "Zs"},
    LongCategory{"other", "C"},
    LongCategory{"control", "Cc"},
    LongCategory{"format", "Cf"},
};
// From 10.40 on, a bare script name also takes characters that other scripts share; Oniguruma's does not.
#if PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40
constexpr std::string_view kScriptPrefix = "sc:";
#else
constexpr std::string_view kScriptPrefix = "";
#endif
// With these \p{..} names a script is not meant, and PCRE2 gives them another meaning or none.
constexpr std::array<std::string_view, 12> kPosixNames = {"alpha", "alnum", "digit", "punct", "upper",  "lower",
                                                          "graph", "print", "cntrl", "blank", "xdigit", "assigned"};

bool is_category(std::string_view name) {
  constexpr std::string_view kSecond[] = {"L:lutmo", "M:nce", "N:dlo", "P:cdseifo", "S:mcko", "Z:slp", "C:cfnos"};
  if (name.empty() || name.size() > 2) return false;
  for (const auto group : kSecond)
    if (group[0] == name[0]) return name.size() == 1 || group.substr(2).find(name[1]) != std::string_view::npos;
  return false;
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view place) : in_(pattern), place_(place) {}

  std::string run() {
    while (at_ < in_.size()) step();
    if (!groups_.empty()) reject("a group is not closed");
    return std::move(out_);
  }

 private:
  [[noreturn]] void reject(std::string_view what) const {
    fail("{}: regular expression `{}`: {} (at byte {})", place_, in_, what, at_);
  }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool accept(std::string_view text) {
    if (in_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }

  void begin_atom() { atom_ = out_.size(); }
  /// Puts the last atom, with its quantifier, into a group of its own, so that another quantifier can follow.
  void wrap_atom() {
    out_.insert(atom_, "(?:");
    out_ += ')';
  }

  void step() {
    const char c = peek();
    switch (c) {
      case '\\':
        begin_atom();
        ++at_;
        escape(false);
        return;
      case '[':
        begin_atom();
        char_class();
        return;
      case '(':
        open_group();
        return;
      case ')':
        if (groups_.empty()) reject("unmatched )");
        ++at_;
        out_ += ')';
        atom_ = groups_.back();
        groups_.pop_back();
        return;
      case '{':
        interval();
        return;
      case '*':
      case '+':
      case '?':
        ++at_;
        out_ += c;
        if (peek() == '?' || peek() == '+') out_ += in_[at_++];
        return;
      default:
        begin_atom();
        copy_character();
    }
  }

  void copy_character() {
    const CodePoint c = decode_utf8(in_, at_);
    if (!c.valid) reject("not UTF-8");
    out_.append(in_, at_, c.size);
    at_ += c.size;
  }

  void open_group() {
    static constexpr std::array<std::string_view, 7> kOpeners = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    const size_t start = out_.size();
    for (const auto opener : kOpeners) {
      if (!accept(opener)) continue;
      out_ += opener;
      groups_.push_back(start);
      return;
    }
    if (peek(1) != '?') {
      // Nothing refers to captures, so none is made.
      ++at_;
      out_ += "(?:";
      groups_.push_back(start);
      return;
    }
    // An option that stands alone has the same scope in both only where it governs the whole pattern.
    if (at_ == 0 && accept("(?i)")) {
      out_ += "(?i)";
      return;
    }
    reject("this kind of group is not supported");
  }

  void interval() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t from = end;
      while (end < in_.size() && std::isdigit(static_cast<unsigned char>(in_[end]))) ++end;
      return in_.substr(from, end - from);
    };
    const std::string_view low = digits();
    std::string_view high = low;
    const bool comma = end < in_.size() && in_[end] == ',';
    if (comma) {
      ++end;
      high = digits();
    }
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty())) {
      begin_atom();
      out_ += "\\{";  // not an interval: both take it literally, PCRE2 surely when escaped
      ++at_;
      return;
    }
    out_ += '{';
    out_ += low.empty() ? "0" : low;
    if (comma) out_ += ',';
    if (comma) out_ += high;
    out_ += '}';
    at_ = end + 1;
    if (peek() == '?' && comma) {
      out_ += '?';
      ++at_;
    } else if (peek() == '+' || peek() == '?') {
      wrap_atom();  // Ruby's {2,3}+ repeats the repetition; PCRE2's is possessive. Ruby's {2}? makes it optional.
    }
  }

  /// What follows a backslash.
  void escape(bool in_class) {
    if (at_ >= in_.size()) reject("ends in a backslash");
    const char c = in_[at_];
    const auto members = [&](std::string_view list) {
      ++at_;
      if (!in_class) out_ += '[';
      out_ += list;
      if (!in_class) out_ += ']';
    };
    const auto complement = [&](std::string_view list) {
      if (in_class) reject("this negated class inside brackets is not supported");
      ++at_;
      out_ += "[^";
      out_ += list;
      out_ += ']';
    };
    switch (c) {
      case 's':
        return members(kSpace);
      case 'S':
        return members(kNotSpace);
      case 'w':
        return members(kWord);
      case 'W':
        return complement(kWord);
      case 'h':
        return members(kHex);
      case 'H':
        return complement(kHex);
      case 'v':
        return members("\\x0B");
      case 'b':
      case 'B':
        if (in_class) reject("\\b inside brackets is not supported");
        return word_boundary(c == 'b');
      case 'p':
      case 'P':
        return property();
      case 'x':
      case 'u':
        return code_point();
      case 'd':
      case 'D':
      case 'n':
      case 't':
      case 'r':
      case 'f':
      case 'a':
      case 'e':
        break;
      case 'A':
      case 'z':
      case 'Z':
      case 'R':
        if (in_class) reject("this escape is not supported inside brackets");
        break;
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) reject("this escape is not supported");
        if (static_cast<unsigned char>(c) >= 0x80) return copy_character();
    }
    out_ += '\\';
    out_ += c;
    ++at_;
  }

  void word_boundary(bool positive) {
    ++at_;
    const std::string word = "[" + std::string(kWord) + "]";
    const std::string_view same = positive ? "!" : "=", other = positive ? "=" : "!";
    out_ += "(?:(?<=" + word + ")(?" + std::string(same) + word + ")|(?<!" + word + ")(?" + std::string(other) + word +
            "))";
  }

  void property() {
    bool negated = in_[at_++] == 'P';
    if (peek() != '{') reject("\\p must be followed by {name}");
    const size_t close = in_.find('}', at_);
    if (close == std::string_view::npos) reject("\\p{ is not closed");
    std::string_view name = in_.substr(at_ + 1, close - at_ - 1);
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    at_ = close + 1;
    std::string bare;  // case, spaces, hyphens and underscores do not count in property names
    for (const char c : name)
      if (c != ' ' && c != '-' && c != '_') bare += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    std::string property;
    if (bare.size() == 1 || bare.size() == 2) {
      property = bare;
      property[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(property[0])));
      if (!is_category(property)) reject("unknown character property");
    } else if (bare == "any") {
      property = "Any";
    } else {
      for (const auto& [long_name, category] : kLongCategories)
        if (bare == long_name) property = category;
      for (const auto posix : kPosixNames)
        if (bare == posix) reject("this character property is not supported");
      for (const char c : bare)
        if (!std::isalpha(static_cast<unsigned char>(c))) reject("this character property is not supported");
      if (property.empty()) property = std::string(kScriptPrefix) + std::string(name);
    }
    out_ += negated ? "\\P{" : "\\p{";
    out_ += property + "}";
  }

  void code_point() {
    const bool braces = peek(1) == '{';
    const bool is_u = peek() == 'u';
    at_ += braces ? 2 : 1;
    char32_t value = 0;
    int count = 0;
    const int limit = braces ? 8 : is_u ? 4 : 2;
    for (; count < limit && std::isxdigit(static_cast<unsigned char>(peek())); ++count, ++at_) {
      const char c = peek();
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    if (count == 0 || (is_u && !braces && count != 4) || (braces && !accept("}"))) reject("a malformed code point");
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) reject("not a Unicode character");
    if (!braces && !is_u && value >= 0x80) reject("\\xHH above 7F means a byte, not a character");
    out_ += fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(value));
  }

  void char_class() {
    ++at_;
    out_ += '[';
    if (accept("^")) out_ += '^';
    if (peek() == ']') reject("an empty class");
    while (peek() != ']') {
      if (at_ >= in_.size()) reject("a class is not closed");
      if (peek() == '[') reject("a class inside a class is not supported");
      if (peek() == '&' && peek(1) == '&') reject("an intersection of classes is not supported");
      if (accept("\\"))
        escape(true);
      else
        copy_character();
    }
    ++at_;
    out_ += ']';
  }

  std::string_view in_;
  std::string_view place_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where in out_ the last atom begins
  std::vector<size_t> groups_;  // where in out_ each open group begins
};

}  // namespace

std::string oniguruma_to_pcre(std::string_view pattern, std::string_view place) {
  return Translator(pattern, place).run();
}

}  // namespace shoal::text
