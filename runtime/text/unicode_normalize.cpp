#include "runtime/text/unicode_normalize.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

utf8proc_option_t options_of(NormalizationForm form) {
  const bool compose = form == NormalizationForm::nfc || form == NormalizationForm::nfkc;
  const bool compatible = form == NormalizationForm::nfkc || form == NormalizationForm::nfkd;
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                                        (compatible ? UTF8PROC_COMPAT : 0));
}

auto combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

/// Orders each run of combining marks by class. utf8proc_decompose does this too, but by insertion: a hostile run of a
/// million marks would take it hours.
void order_marks(std::vector<utf8proc_int32_t>& characters) {
  for (size_t begin = 0; begin < characters.size();) {
    if (combining_class(characters[begin]) == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < characters.size() && combining_class(characters[end]) != 0) ++end;
    std::stable_sort(characters.begin() + static_cast<std::ptrdiff_t>(begin),
                     characters.begin() + static_cast<std::ptrdiff_t>(end),
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

void append_normalized(std::string& out, std::string_view text, utf8proc_option_t options) {
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  constexpr int kLongestDecomposition = 32;  // the longest known is 18
  utf8proc_int32_t parts[kLongestDecomposition];
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    at += c.size;
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value), parts, kLongestDecomposition,
                                               options, &boundary);
    if (count < 0 || count > kLongestDecomposition)
      fail("U+{:04X} cannot be normalized: {}", static_cast<uint32_t>(c.value), utf8proc_errmsg(count));
    characters.insert(characters.end(), parts, parts + count);
  }
  order_marks(characters);
  auto length = static_cast<utf8proc_ssize_t>(characters.size());
  if (options & UTF8PROC_COMPOSE) length = utf8proc_normalize_utf32(characters.data(), length, options);
  if (length < 0) fail("the text cannot be normalized: {}", utf8proc_errmsg(length));
  for (utf8proc_ssize_t i = 0; i < length; ++i)
    append_utf8(out, static_cast<char32_t>(characters[static_cast<size_t>(i)]));
}

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

}  // namespace

std::string unicode_normalize(std::string_view text, NormalizationForm form) {
  const utf8proc_option_t options = options_of(form);
  std::string out;
  out.reserve(text.size());
  // ASCII stays as it is, except that marks after an ASCII letter may join it: so each run of other characters is
  // normalized together with the one ASCII character before it.
  for (size_t at = 0; at < text.size();) {
    size_t begin = at;
    while (begin < text.size() && is_ascii(text[begin])) ++begin;
    if (begin == text.size()) {
      out.append(text, at);
      break;
    }
    size_t end = begin;
    while (end < text.size() && !is_ascii(text[end])) ++end;
    if (begin > at) --begin;
    out.append(text, at, begin - at);
    append_normalized(out, text.substr(begin, end - begin), options);
    at = end;
  }
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = decode_utf8(text, at);
    at += c.size;
    if (c.value == 0x130)
      out += "i\xCC\x87";  // the one character whose lower case is two
    else
      append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))));
  }
  return out;
}

}  // namespace shoal::text
