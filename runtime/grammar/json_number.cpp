#include "runtime/grammar/json_number.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "runtime/grammar/integer_range.h"

namespace shoal::grammar {
namespace {

using Json = nlohmann::ordered_json;

/// Between what a number must be.
struct Bounds {
  std::optional<double> least, most;
  bool above = false, below = false;  // the bound itself is not allowed

  void raise(double bound, bool exclusive) {
    if (least && (*least > bound || (*least == bound && above))) return;
    least = bound;
    above = exclusive;
  }
  void lower(double bound, bool exclusive) {
    if (most && (*most < bound || (*most == bound && below))) return;
    most = bound;
    below = exclusive;
  }
  bool hold(double value) const {
    return (!least || (above ? value > *least : value >= *least)) &&
           (!most || (below ? value < *most : value <= *most));
  }
  /// How many digits behind the point are told apart from each other by a double.
  int places() const {
    const double largest = std::max({1.0, std::abs(least.value_or(1)), std::abs(most.value_or(1))});
    return std::clamp(14 - static_cast<int>(std::ceil(std::log10(largest))), 0, 6);
  }
  /// The least and the largest number that, divided by `scale`, holds; in this order unless there is none.
  std::pair<std::int64_t, std::int64_t> scaled(double scale) const {
    constexpr double limit = 1e15;
    const double open = scale == 1 ? limit : 1e9;  // where there is no bound
    const auto nearest = [&](double bound) { return std::llround(std::clamp(bound * scale, -limit, limit)); };
    std::int64_t from = nearest(least.value_or(-open)), to = nearest(most.value_or(open));
    // Rounding is at most one off; what counts is the number that the digits are read as.
    for (--from; from <= to && !hold(static_cast<double>(from) / scale);) ++from;
    for (++to; to >= from && !hold(static_cast<double>(to) / scale);) --to;
    return {from, to};
  }
};

void add_decimals(std::string& out, const Bounds& bounds, int places) {
  const auto [from, to] = bounds.scaled(std::pow(10.0, places));
  if (from > to) return;
  const std::string one = places > 0 ? decimal_range(from, to, places) : integer_range(from, to);
  out += (out.empty() ? "" : " | ") + one;
}

/// Numbers from 1 on, of at most seven digits, digit by digit with the remainder of those before.
std::string multiples_of(int divisor, SchemaRules& rules) {
  constexpr int most_digits = 7;
  const std::string prefix = rules.add("\"\"");  // a name for the family
  const auto name = [&](int digits, int remainder) { return fmt::format("{}-{}-{}", prefix, digits, remainder); };
  // From where so many digits can still become a multiple: nobody is led to where none can.
  std::vector<std::vector<bool>> alive(most_digits + 1, std::vector<bool>(static_cast<std::size_t>(divisor)));
  for (int digits = most_digits; digits > 0; --digits) {
    for (int remainder = 0; remainder < divisor; ++remainder) {
      bool is = remainder == 0;
      for (int digit = 0; digits < most_digits && digit <= 9; ++digit)
        is |= alive[static_cast<std::size_t>(digits) + 1][static_cast<std::size_t>((10 * remainder + digit) % divisor)];
      alive[static_cast<std::size_t>(digits)][static_cast<std::size_t>(remainder)] = is;
    }
  }
  const auto behind = [&](int digits, int remainder, int first_digit) {
    std::string out = digits > 0 && remainder == 0 ? "\"\"" : "";
    for (int digit = first_digit; digits < most_digits && digit <= 9; ++digit) {
      const int next = (10 * remainder + digit) % divisor;
      if (!alive[static_cast<std::size_t>(digits) + 1][static_cast<std::size_t>(next)]) continue;
      out += fmt::format("{}\"{}\" {}", out.empty() ? "" : " | ", digit, name(digits + 1, next));
    }
    return out;
  };
  for (int digits = 1; digits <= most_digits; ++digits) {
    for (int remainder = 0; remainder < divisor; ++remainder) {
      if (!alive[static_cast<std::size_t>(digits)][static_cast<std::size_t>(remainder)]) continue;
      rules.add(name(digits, remainder), behind(digits, remainder, 0));
    }
  }
  return "(" + behind(0, 0, 1) + ")";
}

std::string multiples(double step, const Bounds& bounds, const std::string& type, const std::string& place,
                      SchemaRules& rules) {
  if (!(step > 0)) refuse_schema(place, "'multipleOf' must be more than 0");
  // A power of ten says how many places there are behind the point.
  const int places = static_cast<int>(std::lround(-std::log10(step)));
  if (type == "number" && places > 0 && places <= 6 && 1 / std::pow(10.0, places) == step) {
    std::string out;
    for (int used = 0; used <= std::min(places, bounds.places()); ++used) add_decimals(out, bounds, used);
    if (out.empty()) refuse_schema(place, "no number is within its bounds");
    return rules.add(out);
  }
  if (step == 1) {
    Bounds same = bounds;
    if (!same.least && !same.most) return "integer";
    std::string out;
    add_decimals(out, same, 0);
    if (out.empty()) refuse_schema(place, "no number is within its bounds");
    return rules.add(out);
  }
  if (step != std::floor(step) || step > 1e9)
    refuse_schema(place, fmt::format("'multipleOf' {} is not supported: a whole number or a power of ten is", step));
  const auto divisor = static_cast<std::int64_t>(step);
  if (bounds.least && bounds.most) {
    const auto [from, to] = bounds.scaled(1);
    const std::int64_t first = from / divisor - 1, last = to / divisor + 1;
    if (last - first < 2000) {
      std::string out;
      for (std::int64_t i = first; i <= last; ++i) {
        if (i * divisor >= from && i * divisor <= to)
          out += fmt::format("{}\"{}\"", out.empty() ? "" : " | ", i * divisor);
      }
      if (out.empty()) refuse_schema(place, "no number is within its bounds");
      return rules.add(out);
    }
  }
  if (bounds.least || bounds.most || divisor > 100)
    refuse_schema(place, "'multipleOf' with this divisor and these bounds is not supported");
  return rules.add("\"0\" | \"-\"? " + multiples_of(static_cast<int>(divisor), rules));
}

}  // namespace

std::string number_rule(const Json& schema, const std::string& type, const std::string& place, SchemaRules& rules) {
  const auto read = [&](const char* keyword) -> std::optional<double> {
    if (!schema.contains(keyword)) return {};
    if (!schema[keyword].is_number()) refuse_schema(place, fmt::format("'{}' must be a number", keyword));
    return schema[keyword].get<double>();
  };
  Bounds bounds;
  if (const auto bound = read("minimum")) bounds.raise(*bound, false);
  if (const auto bound = read("exclusiveMinimum")) bounds.raise(*bound, true);
  if (const auto bound = read("maximum")) bounds.lower(*bound, false);
  if (const auto bound = read("exclusiveMaximum")) bounds.lower(*bound, true);
  const auto step = read("multipleOf");
  if (step) return multiples(*step, bounds, type, place, rules);
  if (!bounds.least && !bounds.most) return type;
  std::string out;
  for (int places = 0; places <= (type == "integer" ? 0 : bounds.places()); ++places) add_decimals(out, bounds, places);
  if (out.empty()) refuse_schema(place, "no number is within its bounds");
  return rules.add(out);
}

}  // namespace shoal::grammar
