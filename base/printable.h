#pragma once
#include <fmt/format.h>

#include <string>
#include <string_view>

namespace shoal {

/// Text that may hold what files hold, as a terminal should get it: control characters, which could move its cursor or
/// worse, are written out ("\x1b"). Ends of lines and tabs stay.
inline std::string printable(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
    const bool ascii_control = (byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7f;
    const bool latin_control = byte == 0xc2 && next >= 0x80 && next < 0xa0;  // U+0080 to U+009F
    if (ascii_control) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (latin_control) {
      out += fmt::format("\\u{:04x}", next);
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace shoal
