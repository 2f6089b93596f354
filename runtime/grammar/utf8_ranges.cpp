#include "runtime/grammar/utf8_ranges.h"

#include <algorithm>

namespace shoal::grammar {
namespace {

constexpr char32_t last_code_point = 0x10FFFF;

ByteRanges encode(char32_t low, char32_t high, int length) {
  const auto byte_of = [length](char32_t code, int i) {
    static constexpr std::uint8_t lead[] = {0, 0x00, 0xC0, 0xE0, 0xF0};
    const char32_t bits = code >> (6 * (length - 1 - i));
    return static_cast<std::uint8_t>(i == 0 ? lead[length] | bits : 0x80 | (bits & 0x3F));
  };
  ByteRanges row{length, {}};
  for (int i = 0; i < length; ++i) row.bytes[static_cast<std::size_t>(i)] = {byte_of(low, i), byte_of(high, i)};
  return row;
}

/// Splits until each byte's range is independent of the bytes in front of it: wherever the lower bytes do not run from
/// all zeros to all ones, the range is cut there.
void add(char32_t low, char32_t high, int length, std::vector<ByteRanges>& rows) {
  for (int i = 1; i < length; ++i) {
    const char32_t mask = (char32_t{1} << (6 * i)) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if ((low & mask) != 0) {
      add(low, low | mask, length, rows);
      return add((low | mask) + 1, high, length, rows);
    }
    if ((high & mask) != mask) {
      add(low, (high & ~mask) - 1, length, rows);
      return add(high & ~mask, high, length, rows);
    }
  }
  rows.push_back(encode(low, high, length));
}

}  // namespace

std::vector<ByteRanges> utf8_ranges(const std::vector<std::pair<char32_t, char32_t>>& ranges) {
  // Characters of equal length, without the surrogates, which UTF-8 does not have.
  static constexpr struct {
    char32_t low, high;
    int length;
  } lengths[] = {
      {0, 0x7F, 1}, {0x80, 0x7FF, 2}, {0x800, 0xD7FF, 3}, {0xE000, 0xFFFF, 3}, {0x10000, last_code_point, 4}};
  std::vector<ByteRanges> rows;
  for (const auto& [low, high] : ranges) {
    for (const auto& part : lengths) {
      const char32_t from = std::max(low, part.low), to = std::min(high, part.high);
      if (from <= to) add(from, to, part.length, rows);
    }
  }
  return rows;
}

std::vector<std::pair<char32_t, char32_t>> complement(std::vector<std::pair<char32_t, char32_t>> ranges) {
  std::sort(ranges.begin(), ranges.end());
  std::vector<std::pair<char32_t, char32_t>> rest;
  char32_t next = 0;  // the first code point not looked at
  for (const auto& [low, high] : ranges) {
    if (low > next) rest.emplace_back(next, low - 1);
    next = std::max<char32_t>(next, high + 1);
  }
  if (next <= last_code_point) rest.emplace_back(next, last_code_point);
  return rest;
}

}  // namespace shoal::grammar
