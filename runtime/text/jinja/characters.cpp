#include "runtime/text/jinja/characters.h"

#include <string.h>  // memmem
#include <utf8proc.h>

#include "runtime/text/jinja/special_casing.h"

namespace shoal::jinja {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool is_cased(char32_t c) { return is_upper(c) || is_lower(c) || is_title(c); }

void append_upper(std::string& out, char32_t c) {
  if (const auto* special = find_special_casing(c)) {
    out += special->upper;
  } else {
    text::append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::string& out, char32_t c) {
  if (const auto* special = find_special_casing(c)) {
    out += special->title;
  } else {
    text::append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

/// `text` is what surrounds the character, which begins at `at`.
void append_lower(std::string& out, char32_t c, std::string_view text, size_t at) {
  constexpr char32_t kSigma = 0x3A3, kFinalSigma = 0x3C2, kCapitalDottedI = 0x130;
  if (c == kCapitalDottedI) {
    out += "i\u0307";
  } else if (c == kSigma) {
    const size_t next = at + 2;
    size_t before = at;
    while (before > 0 && (static_cast<unsigned char>(text[--before]) & 0xC0) == 0x80) {
    }
    const bool in_word = at > 0 && is_cased(text::decode_utf8(text, before).value);
    const bool goes_on = next < text.size() && is_cased(text::decode_utf8(text, next).value);
    text::append_utf8(out, in_word && !goes_on ? kFinalSigma : kSigma + 32);
  } else {
    text::append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

template <class Append>
std::string mapped(std::string_view text, Append append) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    append(out, c.value, at);
    at += c.size;
  }
  return out;
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

size_t length(std::string_view text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

size_t byte_offset(std::string_view text, size_t index) {
  for (size_t at = 0; at < text.size(); ++at)
    if ((static_cast<unsigned char>(text[at]) & 0xC0) != 0x80 && index-- == 0) return at;
  return text.size();
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t at = 0; at < text.size();) {
    const size_t size = text::decode_utf8(text, at).size;
    out.push_back(text.substr(at, size));
    at += size;
  }
  return out;
}

size_t find_text(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return text.npos;
  if (wanted.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.npos;
}

bool is_space(char32_t c) { return (c >= 0x1C && c <= 0x1F) || text::is_white_space(c); }

bool is_alphabetic(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_word(char32_t c) {
  if (c < 0x80) return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
  const auto kind = category(c);
  return is_alphabetic(c) || (kind >= UTF8PROC_CATEGORY_ND && kind <= UTF8PROC_CATEGORY_NO);
}

bool is_decimal(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }
bool is_title(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LT; }

std::string_view strip_left(std::string_view text) {
  while (!text.empty()) {
    const auto c = text::decode_utf8(text, 0);
    if (!is_space(c.value)) break;
    text.remove_prefix(c.size);
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!is_space(text::decode_utf8(text, at).value)) break;
    text = text.substr(0, at);
  }
  return text;
}

std::string to_upper(std::string_view text) {
  return mapped(text, [](std::string& out, char32_t c, size_t) { append_upper(out, c); });
}

std::string to_lower(std::string_view text) {
  return mapped(text, [&](std::string& out, char32_t c, size_t at) { append_lower(out, c, text, at); });
}

std::string capitalize(std::string_view text) {
  return mapped(text, [&](std::string& out, char32_t c, size_t at) {
    if (at == 0) {
      append_title(out, c);
    } else {
      append_lower(out, c, text, at);
    }
  });
}

std::string to_title(std::string_view text) {
  bool in_word = false;
  return mapped(text, [&](std::string& out, char32_t c, size_t at) {
    if (in_word) {
      append_lower(out, c, text, at);
    } else {
      append_title(out, c);
    }
    in_word = is_cased(c);
  });
}

std::string swap_case(std::string_view text) {
  return mapped(text, [&](std::string& out, char32_t c, size_t at) {
    if (is_upper(c)) {
      append_lower(out, c, text, at);
    } else if (is_lower(c)) {
      append_upper(out, c);
    } else {
      text::append_utf8(out, c);
    }
  });
}

std::string fold_case(std::string_view text) {
  return mapped(text, [](std::string& out, char32_t c, size_t) {
    utf8proc_int32_t folded[8];
    int boundclass = UTF8PROC_BOUNDCLASS_START;
    const auto count =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), folded, 8, UTF8PROC_CASEFOLD, &boundclass);
    for (utf8proc_ssize_t i = 0; i < count && i < 8; ++i) text::append_utf8(out, static_cast<char32_t>(folded[i]));
  });
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    const size_t line_end = at;
    at += c.size;
    if (!is_line_end(c.value)) continue;
    if (c.value == '\r' && at < text.size() && text[at] == '\n') ++at;
    out.push_back(text.substr(begin, (keep_ends ? at : line_end) - begin));
    begin = at;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

}  // namespace shoal::jinja
