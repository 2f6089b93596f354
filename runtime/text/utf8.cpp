#include "runtime/text/utf8.h"

#include <algorithm>
#include <cstring>

namespace shoal::text {
namespace {

uint8_t byte_at(std::string_view text, size_t at) { return static_cast<uint8_t>(text[at]); }

/// Length of the run of ASCII bytes that starts at `at`.
size_t ascii_run(std::string_view text, size_t at) {
  size_t end = at;
  for (; end + 8 <= text.size(); end += 8) {
    uint64_t block;
    std::memcpy(&block, text.data() + end, sizeof block);
    if (block & 0x8080808080808080u) break;
  }
  while (end < text.size() && byte_at(text, end) < 0x80) ++end;
  return end - at;
}

}  // namespace

CodePoint decode_utf8(std::string_view text, size_t at) {
  const uint8_t lead = byte_at(text, at);
  if (lead < 0x80) return {lead, 1, true};
  size_t length;
  char32_t value;
  // The range of the second byte excludes overlong forms, surrogates and values above U+10FFFF.
  uint8_t second_min = 0x80, second_max = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
    value = lead & 0x1Fu;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    value = lead & 0x0Fu;
    if (lead == 0xE0) second_min = 0xA0;
    if (lead == 0xED) second_max = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    value = lead & 0x07u;
    if (lead == 0xF0) second_min = 0x90;
    if (lead == 0xF4) second_max = 0x8F;
  } else {
    return {};
  }
  for (size_t i = 1; i < length; ++i) {
    const uint8_t low = i == 1 ? second_min : 0x80, high = i == 1 ? second_max : 0xBF;
    if (at + i >= text.size()) return {kReplacementCharacter, i, false};
    const uint8_t byte = byte_at(text, at + i);
    if (byte < low || byte > high) return {kReplacementCharacter, i, false};
    value = value << 6 | (byte & 0x3Fu);
  }
  return {value, length, true};
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    at += ascii_run(text, at);
    if (at == text.size()) break;
    const CodePoint c = decode_utf8(text, at);
    if (!c.valid) return false;
    at += c.size;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t ascii = ascii_run(text, at);
    out.append(text, at, ascii);
    at += ascii;
    if (at == text.size()) break;
    const CodePoint c = decode_utf8(text, at);
    if (c.valid)
      out.append(text, at, c.size);
    else
      append_utf8(out, kReplacementCharacter);
    at += c.size;
  }
  return out;
}

size_t incomplete_utf8_tail(std::string_view text) {
  for (size_t tail = 1; tail <= std::min<size_t>(3, text.size()); ++tail) {
    const size_t at = text.size() - tail;
    if ((byte_at(text, at) & 0xC0) == 0x80) continue;
    // A lead byte: what follows is unfinished when decoding consumes all of it without completing a character.
    const CodePoint c = decode_utf8(text, at);
    const bool is_lead = byte_at(text, at) >= 0xC2 && byte_at(text, at) <= 0xF4;
    return is_lead && !c.valid && c.size == tail ? tail : 0;
  }
  return 0;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace shoal::text
