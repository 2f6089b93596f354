#include "runtime/grammar/integer_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace shoal::grammar {
namespace {

/// Writes ranges of numbers with `places` digits behind a point; 0: without one.
struct RangeWriter {
  std::size_t places;

  /// The point, where it stands in front of the last `rest` digits.
  std::string point(std::size_t rest) const { return places > 0 && rest == places ? "\".\" " : ""; }
  std::string digits(char low, char high, std::size_t rest) const {
    return point(rest) + (low == high ? fmt::format("\"{}\"", low) : fmt::format("[{}-{}]", low, high));
  }
  std::string any_digits(std::size_t n) const {
    if (n == 0) return "";
    if (places == 0 || n < places) return fmt::format(" [0-9]{{{}}}", n);
    const std::string behind = fmt::format(" \".\" [0-9]{{{}}}", places);
    return n == places ? behind : fmt::format(" [0-9]{{{}}}", n - places) + behind;
  }

  /// Numbers of equal length, from `low` to `high`, digit by digit.
  std::string same_length(const std::string& low, const std::string& high) const {
    const std::size_t rest = low.size() - 1;
    char first = low[0], last = high[0];
    if (rest == 0) return digits(first, last, 1);
    const std::string least(rest, '0'), most(rest, '9');
    const auto followed = [&](char digit, const std::string& from, const std::string& to) {
      return fmt::format("{} ({})", digits(digit, digit, rest + 1), same_length(from, to));
    };
    if (first == last) return followed(first, low.substr(1), high.substr(1));
    std::vector<std::string> ways;
    if (low.substr(1) != least) {
      ways.push_back(followed(first, low.substr(1), most));
      ++first;
    }
    std::string top;
    if (high.substr(1) != most) {
      top = followed(last, least, high.substr(1));
      --last;
    }
    if (first <= last) ways.push_back(digits(first, last, rest + 1) + any_digits(rest));
    if (!top.empty()) ways.push_back(top);
    return fmt::format("{}", fmt::join(ways, " | "));
  }

  /// 0 <= least <= most.
  std::string natural_range(std::uint64_t least, std::uint64_t most) const {
    const auto padded = [&](std::uint64_t number) { return fmt::format("{:0{}}", number, places + 1); };
    const std::string low = padded(least), high = padded(most);
    std::vector<std::string> ways;
    for (std::size_t length = low.size(); length <= high.size(); ++length) {
      const std::string from = length == low.size() ? low : "1" + std::string(length - 1, '0');
      const std::string to = length == high.size() ? high : std::string(length, '9');
      ways.push_back(same_length(from, to));
    }
    return fmt::format("{}", fmt::join(ways, " | "));
  }

  std::string range(std::int64_t least, std::int64_t most) const {
    std::vector<std::string> ways;
    if (least < 0) {
      const auto from = static_cast<std::uint64_t>(most < 0 ? -most : 1), to = static_cast<std::uint64_t>(-least);
      ways.push_back(fmt::format("\"-\" ({})", natural_range(from, to)));
    }
    if (most >= 0)
      ways.push_back(natural_range(static_cast<std::uint64_t>(std::max<std::int64_t>(least, 0)),
                                   static_cast<std::uint64_t>(most)));
    return fmt::format("{}", fmt::join(ways, " | "));
  }
};

}  // namespace

std::string integer_range(std::int64_t least, std::int64_t most) { return RangeWriter{0}.range(least, most); }

std::string decimal_range(std::int64_t least, std::int64_t most, int places) {
  return RangeWriter{static_cast<std::size_t>(places)}.range(least, most);
}

}  // namespace shoal::grammar
