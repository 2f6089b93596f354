#pragma once
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace shoal::grammar {

/// Bytes of characters, one range for each byte: {E0}{A0-BF}{80-BF}.
struct ByteRanges {
  int length = 0;
  std::array<std::pair<std::uint8_t, std::uint8_t>, 4> bytes{};
};

/// The UTF-8 of all code points of `ranges` (in any order, both ends included; surrogates are left out) as few rows of
/// byte ranges. No two rows match the same bytes where no two ranges overlap.
std::vector<ByteRanges> utf8_ranges(const std::vector<std::pair<char32_t, char32_t>>& ranges);

/// The code points that are in none of the ranges.
std::vector<std::pair<char32_t, char32_t>> complement(std::vector<std::pair<char32_t, char32_t>> ranges);

}  // namespace shoal::grammar
