#include <cmath>
#include <cstdlib>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/number_text.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

constexpr double kInt64Bound = 9223372036854775808.0;

int64_t to_integer(double number) {
  if (!(number >= -kInt64Bound && number < kInt64Bound)) fault("a float does not fit an integer of 64 bits");
  return static_cast<int64_t>(number);
}

Value integer(Context&, const Value& value, const Args& args) {
  args.allow({"default", "base"});
  const Value fallback = args.get(0, "default", 0);
  const int64_t base = integer_argument(args, 1, "base", 10);
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (value.is_integral()) return value.as_int();
  if (value.is_float()) return std::isnan(value.as_double()) ? fallback : Value(to_integer(value.as_double()));
  if (!value.is_string()) return fallback;
  if (const auto whole = parse_integer(value.as_string(), base)) return *whole;
  const auto real = parse_float(value.as_string());
  return real && std::isfinite(*real) ? Value(to_integer(*real)) : fallback;
}

Value real(Context&, const Value& value, const Args& args) {
  args.allow({"default"});
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (value.is_number()) return value.as_double();
  if (value.is_string())
    if (const auto number = parse_float(value.as_string())) return *number;
  return args.get(0, "default", 0.0);
}

Value absolute(Context&, const Value& value, const Args& args) {
  args.allow({});
  if (value.is_float()) return std::abs(value.as_double());
  if (!value.is_integral()) fault("bad operand type for abs(): '{}'", type_name(value));
  return value.as_int() < 0 ? signed_value(value, true) : Value(value.as_int());
}

/// To the nearest multiple of 10^-precision, halves to the even one.
Value round_integer(int64_t number, int64_t precision) {
  if (precision >= 0) return number;
  if (precision < -18) return 0;
  int64_t unit = 1;
  for (int64_t i = 0; i > precision; --i) unit *= 10;
  int64_t quotient = number / unit, rest = std::abs(number % unit);
  if (rest > unit - rest || (rest == unit - rest && quotient % 2 != 0)) quotient += number < 0 ? -1 : 1;
  int64_t result = 0;
  if (__builtin_mul_overflow(quotient, unit, &result)) fault("an integer does not fit 64 bits");
  return result;
}

/// As Python's round: exact, by way of the decimal digits.
double round_float(double number, int64_t precision) {
  if (!std::isfinite(number) || precision > 400) return number;
  if (precision < -400) return std::copysign(0.0, number);
  if (precision >= 0) return std::strtod(fmt::format("{:.{}f}", number, precision).c_str(), nullptr);
  // Rounded to an even multiple of 10^n; both are exact as long double for any n that matters.
  const long double unit = std::pow(10.0L, static_cast<long double>(-precision));
  const long double quotient = std::nearbyint(static_cast<long double>(number) / unit);
  return static_cast<double>(quotient * unit);
}

Value rounded(Context&, const Value& value, const Args& args) {
  args.allow({"precision", "method"});
  const int64_t precision = integer_argument(args, 0, "precision", 0);
  const Value method = args.get(1, "method", "common");
  const std::string& how = as_text(method, "method");
  if (how != "common" && how != "ceil" && how != "floor") fault("method must be common, ceil or floor");
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (!value.is_number()) fault("'{}' cannot be rounded", type_name(value));
  if (how == "common") {
    return value.is_float() ? Value(round_float(value.as_double(), precision))
                            : round_integer(value.as_int(), precision);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = value.as_double() * unit;
  if (!std::isfinite(scaled)) fault("the number is too large to be rounded");
  return (how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit;
}

Value filesizeformat(Context&, const Value& value, const Args& args) {
  args.allow({"binary"});
  const bool binary = flag_argument(args, 0, "binary", false);
  std::optional<double> size;
  if (value.is_number()) size = value.as_double();
  if (value.is_string()) size = parse_float(value.as_string());
  if (!size || !std::isfinite(*size)) fault("filesizeformat needs a number");
  const double base = binary ? 1024 : 1000;
  if (*size == 1) return "1 Byte";
  if (*size < base) return fmt::format("{} Bytes", to_integer(*size));
  static constexpr std::string_view kUnits = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  for (; i + 1 < kUnits.size() && *size >= unit * base; ++i) unit *= base;
  const char letter = binary && kUnits[i] == 'k' ? 'K' : kUnits[i];
  return fmt::format("{:.1f} {}{}B", *size / unit, letter, binary ? "i" : "");
}

}  // namespace

Filter find_number_filter(std::string_view name) {
  static const Table<Filter> kFilters = {
      {"int", integer}, {"float", real}, {"abs", absolute}, {"round", rounded}, {"filesizeformat", filesizeformat}};
  return find_in(kFilters, name);
}

}  // namespace shoal::jinja
