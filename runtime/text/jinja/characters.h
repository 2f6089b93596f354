#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

/// Text as Python sees it: a row of code points. All text here is valid UTF-8.
namespace shoal::jinja {

/// How many code points `text` has.
size_t length(std::string_view text);

/// Where in `text` the code point number `index` begins; text.size() where there are not so many.
size_t byte_offset(std::string_view text, size_t index);

/// The code points of `text`, each as the bytes it takes.
std::vector<std::string_view> characters(std::string_view text);

/// Where `wanted` is in `text` at or after `from`, npos where it is not; in time linear in both, which
/// string_view::find is not.
size_t find_text(std::string_view text, std::string_view wanted, size_t from = 0);

/// What Python's str.isspace holds for: strip, split and \s go by it.
bool is_space(char32_t c);
/// A letter, digit or other character of a word: \w.
bool is_word(char32_t c);
bool is_alphabetic(char32_t c);
bool is_decimal(char32_t c);
/// What repr and tojson write as it is.
bool is_printable(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);

/// `text` without the leading (trailing) characters that are white space.
std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
/// The first character in title case, the others in lower case.
std::string capitalize(std::string_view text);
/// Each run of letters capitalized (Python's str.title).
std::string to_title(std::string_view text);
std::string swap_case(std::string_view text);
std::string fold_case(std::string_view text);

/// `text` cut after each of the line ends that Python's str.splitlines knows; `keep_ends` leaves them in.
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

/// Calls `visit` with each code point of `text`.
template <class Visit>
void for_each_character(std::string_view text, Visit visit);

}  // namespace shoal::jinja

#include "runtime/text/utf8.h"

template <class Visit>
void shoal::jinja::for_each_character(std::string_view text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    visit(c.value);
    at += c.size;
  }
}
