#include "runtime/text/jinja/literal.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "runtime/text/jinja/fault.h"
#include "runtime/text/utf8.h"

namespace shoal::jinja {
namespace {

bool is_digit(char c, int base) {
  if (base == 16) return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f');
  return c >= '0' && c < '0' + base;
}

/// The end of a run of digits from `at`, single underscores between them; `at` where there is no digit.
size_t digits_end(std::string_view text, size_t at, int base) {
  size_t end = at;
  while (end < text.size()) {
    const bool underscore = end > at && text[end] == '_' && end + 1 < text.size();
    if (!is_digit(text[end + (underscore ? 1 : 0)], base)) break;
    end += underscore ? 2 : 1;
  }
  return end;
}

/// The end of a number with a fraction, an exponent or both; 0 where there is none.
size_t real_end(std::string_view text) {
  const size_t whole = digits_end(text, 0, 10);
  if (whole == 0) return 0;
  size_t end = whole;
  if (end < text.size() && text[end] == '.') {
    const size_t fraction = digits_end(text, end + 1, 10);
    if (fraction > end + 1) end = fraction;
  }
  if (end < text.size() && (text[end] | 32) == 'e') {
    size_t exponent = end + 1;
    if (exponent < text.size() && (text[exponent] == '+' || text[exponent] == '-')) ++exponent;
    const size_t exponent_end = digits_end(text, exponent, 10);
    if (exponent_end > exponent) end = exponent_end;
  }
  return end == whole ? 0 : end;
}

int base_of(std::string_view text) {
  if (text.size() < 2 || text[0] != '0') return 10;
  switch (text[1] | 32) {
    case 'b':
      return 2;
    case 'o':
      return 8;
    case 'x':
      return 16;
    default:
      return 10;
  }
}

std::string without_underscores(std::string_view text) {
  std::string out(text);
  out.erase(std::remove(out.begin(), out.end(), '_'), out.end());
  return out;
}

/// The code point written as `digits` hexadecimal digits at `at`.
char32_t hexadecimal(std::string_view text, size_t at, size_t digits, int line) {
  uint32_t value = 0;
  const char* begin = text.data() + std::min(at, text.size());
  const char* end = text.data() + std::min(at + digits, text.size());
  const auto [stop, error] = std::from_chars(begin, end, value, 16);
  if (error != std::errc() || stop != begin + digits)
    syntax_fault(line, "truncated \\x, \\u or \\U escape in a string");
  if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
    syntax_fault(line, "U+{:04X} in a string is not a character", value);
  return value;
}

/// Reads the escape whose backslash is before `at`, appends what it stands for, and gives where the text goes on.
size_t read_escape(std::string_view text, size_t at, int line, std::string& out) {
  static constexpr std::string_view kShort = "abfnrtv\\'\"", kMeaning = "\a\b\f\n\r\t\v\\'\"";
  const char c = text[at];
  if (const size_t found = kShort.find(c); found != kShort.npos) {
    out += kMeaning[found];
    return at + 1;
  }
  if (c == '\n') return at + 1;
  if (is_digit(c, 8)) {
    char32_t value = 0;
    size_t end = at;
    while (end < text.size() && end < at + 3 && is_digit(text[end], 8)) value = value * 8 + (text[end++] - '0');
    text::append_utf8(out, value);
    return end;
  }
  if (const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0; digits > 0) {
    text::append_utf8(out, hexadecimal(text, at + 1, digits, line));
    return at + 1 + digits;
  }
  if (c == 'N') syntax_fault(line, "\\N escapes are not supported");
  out += '\\';  // Python keeps escapes that it does not know
  return at;
}

}  // namespace

size_t number_length(std::string_view text, bool after_dot) {
  if (text.empty() || !is_digit(text[0], 10)) return 0;
  if (!after_dot) {
    if (const size_t end = real_end(text)) return end;
  }
  if (const int base = base_of(text); base != 10) {
    const size_t start = 2 + (text.size() > 2 && text[2] == '_' ? 1 : 0);
    const size_t end = digits_end(text, start, base);
    return end > start ? end : 1;
  }
  if (text[0] != '0') return digits_end(text, 0, 10);
  // A zero is followed by zeros only: "012" is two numbers, which no expression allows.
  size_t end = 1;
  while (end < text.size()) {
    const bool underscore = text[end] == '_' && end + 1 < text.size();
    if (text[end + (underscore ? 1 : 0)] != '0') break;
    end += underscore ? 2 : 1;
  }
  return end;
}

Token number_token(std::string_view text, int line) {
  const std::string digits = without_underscores(text);
  Token token{.line = line, .text = digits};
  if (base_of(digits) == 10 && digits.find_first_of(".eE") != digits.npos) {
    token.kind = TokenKind::real;
    std::from_chars(digits.data(), digits.data() + digits.size(), token.real);
    // from_chars leaves the value alone where it is out of range.
    if (token.real == 0) token.real = std::strtod(digits.c_str(), nullptr);
    return token;
  }
  token.kind = TokenKind::integer;
  const int base = base_of(digits);
  const char* begin = digits.data() + (base == 10 ? 0 : 2);
  const auto [stop, error] = std::from_chars(begin, digits.data() + digits.size(), token.integer, base);
  if (error != std::errc()) syntax_fault(line, "the number {} does not fit 64 bits", text);
  return token;
}

std::string unescape(std::string_view text, int line) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    if (text[at] != '\\') {
      out += text[at++];
    } else if (at + 1 == text.size()) {
      syntax_fault(line, "a string ends with a backslash");
    } else {
      at = read_escape(text, at + 1, line, out);
    }
  }
  return out;
}

}  // namespace shoal::jinja
