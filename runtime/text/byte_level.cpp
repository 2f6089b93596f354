#include "runtime/text/byte_level.h"

#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

constexpr char32_t kFirstStandIn = 0x100;

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int, kFirstStandIn + 256> bytes;

  Alphabet() {
    bytes.fill(-1);
    char32_t next_stand_in = kFirstStandIn;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t character = printable ? static_cast<char32_t>(byte) : next_stand_in++;
      append_utf8(characters[static_cast<size_t>(byte)], character);
      bytes[character] = byte;
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet table;
  return table;
}

}  // namespace

const std::array<std::string, 256>& byte_level_characters() { return alphabet().characters; }

std::optional<char> byte_level_byte(char32_t character) {
  const auto& bytes = alphabet().bytes;
  if (character >= bytes.size() || bytes[character] < 0) return std::nullopt;
  return static_cast<char>(bytes[character]);
}

std::string byte_level_decode(std::string_view token) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    const CodePoint c = decode_utf8(token, at);
    const auto byte = c.valid ? byte_level_byte(c.value) : std::nullopt;
    if (!byte) return std::string(token);
    out += *byte;
    at += c.size;
  }
  return out;
}

}  // namespace shoal::text
