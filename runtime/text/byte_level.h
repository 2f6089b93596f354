#pragma once
#include <array>
#include <optional>
#include <string>
#include <string_view>

/// Byte-level BPE writes each byte of a text as one printable character, so that a vocabulary stays readable text:
/// printable Latin-1 bytes stand for themselves, the 68 others for U+0100 and up ("Ġ" is the space).
namespace shoal::text {

/// The character that stands for each byte, as UTF-8.
const std::array<std::string, 256>& byte_level_characters();

/// The byte a character stands for; none where the character is not in the byte-level alphabet.
std::optional<char> byte_level_byte(char32_t character);

/// The bytes a token's text stands for. A text with any character outside the alphabet (an added token) is taken as it
/// is, in whole, as the `tokenizers` package does.
std::string byte_level_decode(std::string_view token);

}  // namespace shoal::text
