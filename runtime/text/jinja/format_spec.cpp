#include "runtime/text/jinja/format_spec.h"

#include <algorithm>
#include <cmath>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

constexpr int64_t kMaxSize = 10'000;

bool is_align(char c) { return c == '<' || c == '>' || c == '^' || c == '='; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The number at the start of `text`, which loses it.
int64_t take_number(std::string_view& text) {
  int64_t number = 0;
  while (!text.empty() && is_digit(text[0])) {
    number = std::min<int64_t>(number * 10 + (text[0] - '0'), kMaxSize + 1);
    text.remove_prefix(1);
  }
  return number;
}

std::string grouped(const std::string& digits, char separator, size_t every) {
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % every == 0) out += separator;
    out += digits[i];
  }
  return out;
}

std::string sign_of(bool negative, char sign) { return negative ? "-" : sign == '-' ? "" : std::string(1, sign); }

std::string printed(const char* form, int precision, double number) {
  std::string out(static_cast<size_t>(precision) + 400, '\0');
  const int size = std::snprintf(out.data(), out.size(), form, precision, number);
  out.resize(static_cast<size_t>(size));
  return out;
}

/// A float as str.format writes it without a type but with a precision: as 'g', but never as an integer.
std::string general(double number, int precision) {
  std::string out = printed("%.*g", precision, number);
  if (const size_t e = out.find('e'); e != out.npos) return out;
  // The exponent form comes one digit earlier than with 'g'.
  if (std::abs(number) >= std::pow(10.0, precision - 1) && number != 0) {
    out = printed("%.*e", precision - 1, number);
    const size_t exponent = out.find('e');
    std::string mantissa = out.substr(0, exponent);
    if (mantissa.find('.') != mantissa.npos) {
      mantissa.erase(mantissa.find_last_not_of('0') + 1);
      if (mantissa.back() == '.') mantissa.pop_back();
    }
    return mantissa + out.substr(exponent);
  }
  return out.find('.') == out.npos ? out + ".0" : out;
}

}  // namespace

size_t format_size(int64_t number) {
  if (number > kMaxSize) fault("a width or precision above {} is not supported", kMaxSize);
  return static_cast<size_t>(std::max<int64_t>(number, 0));
}

FormatSpec parse_format_spec(std::string_view text) {
  FormatSpec spec;
  const std::string_view whole = text;
  if (!text.empty()) {
    const size_t first = text::decode_utf8(text, 0).size;
    if (text.size() > first && is_align(text[first])) {
      spec.fill = text.substr(0, first);
      spec.align = text[first];
      text.remove_prefix(first + 1);
    } else if (is_align(text[0])) {
      spec.align = text[0];
      text.remove_prefix(1);
    }
  }
  const auto take = [&text](std::string_view any) {
    const char c = !text.empty() && any.find(text[0]) != any.npos ? text[0] : '\0';
    if (c) text.remove_prefix(1);
    return c;
  };
  if (const char sign = take("+- ")) spec.sign = sign;
  spec.alternate = take("#");
  if (take("0")) {
    if (!spec.align) {
      spec.fill = "0";
      spec.align = '=';
    } else if (spec.fill == " ") {
      spec.fill = "0";
    }
  }
  spec.width = format_size(take_number(text));
  spec.grouping = take(",_");
  if (take(".")) {
    if (text.empty() || !is_digit(text[0])) fault("a format has no precision after its '.'");
    spec.precision = static_cast<int>(format_size(take_number(text)));
  }
  spec.type = take("sdbcoxXneEfFgG%");
  if (!text.empty()) fault("invalid format '{}'", whole);
  return spec;
}

std::string format_integer(int64_t number, const FormatSpec& spec) {
  const uint64_t magnitude = number < 0 ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
  std::string digits, prefix;
  switch (spec.type) {
    case 'b':
      digits = fmt::format("{:b}", magnitude);
      prefix = "0b";
      break;
    case 'o':
      digits = fmt::format("{:o}", magnitude);
      prefix = "0o";
      break;
    case 'x':
      digits = fmt::format("{:x}", magnitude);
      prefix = "0x";
      break;
    case 'X':
      digits = fmt::format("{:X}", magnitude);
      prefix = "0X";
      break;
    default:
      digits = std::to_string(magnitude);
  }
  if (spec.grouping) digits = grouped(digits, spec.grouping, prefix.empty() ? 3 : 4);
  return sign_of(number < 0, spec.sign) + (spec.alternate ? prefix : "") + digits;
}

std::string format_float(double number, const FormatSpec& spec) {
  const double magnitude = std::abs(number);
  const bool upper = spec.type == 'E' || spec.type == 'F' || spec.type == 'G';
  std::string text;
  if (!std::isfinite(number)) {
    text = std::isnan(number) ? "nan" : "inf";
    if (spec.type == '%') text += '%';
  } else {
    const int precision = spec.precision.value_or(6);
    switch (spec.type | 32) {
      case 'e':
        text = printed("%.*e", precision, magnitude);
        break;
      case 'f':
        text = printed("%.*f", precision, magnitude);
        break;
      case 'g':
      case 'n':
        text = printed("%.*g", precision, magnitude);
        break;
      case '%' | 32:
        text = printed("%.*f", precision, magnitude * 100) + "%";
        break;
      default:
        text = spec.precision ? general(magnitude, std::max(precision, 1)) : float_text(magnitude);
    }
  }
  if (spec.grouping) {
    const size_t end = std::min(text.find_first_not_of("0123456789"), text.size());
    text = grouped(text.substr(0, end), spec.grouping, 3) + text.substr(end);
  }
  if (upper)
    std::transform(text.begin(), text.end(), text.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  return sign_of(std::signbit(number) && !std::isnan(number), spec.sign) + text;
}

std::string pad(Context& context, const std::string& text, const FormatSpec& spec, char align) {
  const size_t size = length(text);
  if (size >= spec.width) return text;
  const size_t missing = spec.width - size;
  const char at = spec.align ? spec.align : align;
  size_t before = at == '<' ? 0 : at == '^' ? missing / 2 : missing;
  Writer out(context);
  size_t head = 0;
  if (at == '=') {
    // The fill goes between the sign, or the prefix, and the digits.
    head = text.starts_with('-') || text.starts_with('+') || text.starts_with(' ') ? 1 : 0;
    if (spec.alternate && text.size() > head + 1 && text[head] == '0' && !is_digit(text[head + 1])) head += 2;
  }
  out.add(std::string_view(text).substr(0, head));
  out.add(spec.fill, before);
  out.add(std::string_view(text).substr(head));
  out.add(spec.fill, missing - before);
  return out.take();
}

std::string format_value(Context& context, const Value& value, const FormatSpec& spec) {
  static constexpr std::string_view kFloatTypes = "eEfFgG%";
  const bool as_float = spec.type && kFloatTypes.find(spec.type) != kFloatTypes.npos;
  if (value.is_string()) {
    if ((spec.type && spec.type != 's') || spec.align == '=' || spec.sign != '-' || spec.grouping || spec.alternate)
      fault("text cannot be formatted so");
    std::string text = value.as_string();
    if (spec.precision) text.resize(byte_offset(text, static_cast<size_t>(*spec.precision)));
    return pad(context, text, spec, '<');
  }
  if (value.is_number() && (value.is_float() || as_float)) {
    if (spec.type && !as_float && spec.type != 'n') fault("a float cannot be formatted as '{}'", spec.type);
    return pad(context, format_float(value.as_double(), spec), spec, '>');
  }
  if (value.is_integral()) {
    if (spec.precision) fault("precision is not allowed in the format of an integer");
    if (spec.type == 's') fault("an integer cannot be formatted as 's'");
    if (value.is_bool() && !spec.type && spec.width == 0 && !spec.grouping && spec.sign == '-')
      return value.as_bool() ? "True" : "False";
    if (spec.type == 'c') {
      const int64_t code = value.as_int();
      if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fault("{} is no character", code);
      std::string text;
      text::append_utf8(text, static_cast<char32_t>(code));
      return pad(context, text, spec, '<');
    }
    return pad(context, format_integer(value.as_int(), spec), spec, '>');
  }
  fault("unsupported format for '{}'", type_name(value));
}

}  // namespace shoal::jinja
