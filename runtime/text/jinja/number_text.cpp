#include "runtime/text/jinja/number_text.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {
namespace {

bool is_alphanumeric(char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'); }

/// Without underscores; none where one is not between digits.
std::optional<std::string> without_separators(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !is_alphanumeric(text[i - 1]) || !is_alphanumeric(text[i + 1])) {
      return std::nullopt;
    }
  }
  return out;
}

/// True where `text` has the form of a decimal float, which strtod takes as Python does.
bool is_decimal_float(std::string_view text) {
  size_t at = 0;
  const auto digits = [&] {
    const size_t begin = at;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
    return at - begin;
  };
  size_t count = digits();
  if (at < text.size() && text[at] == '.') {
    ++at;
    count += digits();
  }
  if (count == 0) return false;
  if (at < text.size() && (text[at] | 32) == 'e') {
    ++at;
    if (at < text.size() && (text[at] == '+' || text[at] == '-')) ++at;
    if (digits() == 0) return false;
  }
  return at == text.size();
}

std::string_view without_sign(std::string_view text, bool& negative) {
  negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  return text;
}

}  // namespace

std::optional<int64_t> parse_integer(std::string_view text, int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  bool negative = false;
  text = without_sign(strip_right(strip_left(text)), negative);
  const char mark = text.size() > 1 && text[0] == '0' ? static_cast<char>(text[1] | 32) : '\0';
  const int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked != 0 && (base == 0 || base == marked)) {
    base = marked;
    text.remove_prefix(2);
    if (text.starts_with('_')) text.remove_prefix(1);
  } else if (base == 0) {
    base = 10;
    if (text.starts_with('0') && text.find_first_not_of("0_") != text.npos) return std::nullopt;
  }
  const auto digits = without_separators(text);
  if (!digits || digits->empty() || !is_alphanumeric(digits->front())) return std::nullopt;
  const std::string signed_digits = (negative ? "-" : "") + *digits;
  int64_t value = 0;
  const char* end = signed_digits.data() + signed_digits.size();
  const auto [stop, error] = std::from_chars(signed_digits.data(), end, value, static_cast<int>(base));
  if (stop != end || error == std::errc::invalid_argument) return std::nullopt;
  if (error != std::errc()) fault("an integer does not fit 64 bits");
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  bool negative = false;
  const auto plain = without_separators(without_sign(strip_right(strip_left(text)), negative));
  if (!plain) return std::nullopt;
  const std::string lower = to_lower(*plain);
  double value = 0;
  if (lower == "inf" || lower == "infinity") {
    value = HUGE_VAL;
  } else if (lower == "nan") {
    value = static_cast<double>(NAN);
  } else if (is_decimal_float(*plain)) {
    value = std::strtod(plain->c_str(), nullptr);
  } else {
    return std::nullopt;
  }
  return negative ? -value : value;
}

}  // namespace shoal::jinja
