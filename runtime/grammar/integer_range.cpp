#include "runtime/grammar/integer_range.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace shoal::grammar {
namespace {

std::string digits(char low, char high) {
  return low == high ? fmt::format("\"{}\"", low) : fmt::format("[{}-{}]", low, high);
}
std::string any_digits(std::size_t n) { return n == 0 ? "" : fmt::format(" [0-9]{{{}}}", n); }

/// Numbers of equal length, from `low` to `high`, digit by digit.
std::string same_length(const std::string& low, const std::string& high) {
  const std::size_t rest = low.size() - 1;
  if (rest == 0) return digits(low[0], high[0]);
  const std::string least(rest, '0'), most(rest, '9');
  std::vector<std::string> ways;
  char first = low[0], last = high[0];
  if (first == last) return fmt::format("\"{}\" ({})", first, same_length(low.substr(1), high.substr(1)));
  if (low.substr(1) != least) {
    ways.push_back(fmt::format("\"{}\" ({})", first, same_length(low.substr(1), most)));
    ++first;
  }
  std::string top;
  if (high.substr(1) != most) {
    top = fmt::format("\"{}\" ({})", last, same_length(least, high.substr(1)));
    --last;
  }
  if (first <= last) ways.push_back(digits(first, last) + any_digits(rest));
  if (!top.empty()) ways.push_back(top);
  return fmt::format("{}", fmt::join(ways, " | "));
}

/// 0 <= least <= most.
std::string natural_range(std::uint64_t least, std::uint64_t most) {
  const std::string low = std::to_string(least), high = std::to_string(most);
  std::vector<std::string> ways;
  for (std::size_t length = low.size(); length <= high.size(); ++length) {
    const std::string from = length == low.size() ? low : "1" + std::string(length - 1, '0');
    const std::string to = length == high.size() ? high : std::string(length, '9');
    ways.push_back(same_length(from, to));
  }
  return fmt::format("{}", fmt::join(ways, " | "));
}

}  // namespace

std::string integer_range(std::int64_t least, std::int64_t most) {
  std::vector<std::string> ways;
  if (least < 0) {
    const auto from = static_cast<std::uint64_t>(most < 0 ? -most : 1), to = static_cast<std::uint64_t>(-least);
    ways.push_back(fmt::format("\"-\" ({})", natural_range(from, to)));
  }
  if (most >= 0)
    ways.push_back(
        natural_range(static_cast<std::uint64_t>(std::max<std::int64_t>(least, 0)), static_cast<std::uint64_t>(most)));
  return fmt::format("{}", fmt::join(ways, " | "));
}

}  // namespace shoal::grammar
