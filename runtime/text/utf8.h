#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// UTF-8 as this runtime needs it: decoding one code point, replacing what is not UTF-8, and cutting at characters.
namespace shoal::text {

constexpr char32_t kReplacementCharacter = 0xFFFD;

/// One decoded code point and the bytes it took. `valid` is false where the bytes are not UTF-8; `size` is then the
/// length of the longest prefix that could have begun a character (at least 1), which is what one U+FFFD stands for.
struct CodePoint {
  char32_t value = kReplacementCharacter;
  size_t size = 1;
  bool valid = false;
};

/// Decodes the code point at `at` (< text.size()).
CodePoint decode_utf8(std::string_view text, size_t at);

/// Appends `code_point` to `out` as UTF-8.
void append_utf8(std::string& out, char32_t code_point);

/// True where every byte of `text` is part of a well-formed UTF-8 character.
bool is_valid_utf8(std::string_view text);

/// `text` with each malformed part replaced by U+FFFD, as Python's bytes.decode("utf-8", "replace") does.
std::string replace_invalid_utf8(std::string_view text);

/// Bytes at the end of `text` that begin a character which is not complete yet (0 to 3).
size_t incomplete_utf8_tail(std::string_view text);

/// Unicode's White_Space property.
bool is_white_space(char32_t code_point);

}  // namespace shoal::text
