#include "runtime/text/jinja/operators.h"

#include <cmath>

#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/percent_format.h"

namespace shoal::jinja {
namespace {

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

[[noreturn]] void refuse(ArithmeticOp op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b})
    if (value->is_undefined()) fault("{}", value->why_undefined());
  fault("unsupported operand types for {}: '{}' and '{}'", kSymbols[static_cast<size_t>(op)], type_name(a),
        type_name(b));
}

[[noreturn]] void too_large() { fault("an integer does not fit 64 bits"); }

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (true) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) too_large();
    exponent >>= 1;
    if (exponent == 0) return result;
    if (__builtin_mul_overflow(base, base, &base)) too_large();
  }
}

double real_power(double base, double exponent) {
  if (base == 0 && exponent < 0) fault("zero cannot be raised to a negative power");
  if (base < 0 && exponent != std::floor(exponent)) fault("a negative number to a fractional power is complex");
  const double result = std::pow(base, exponent);
  if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) fault("the result is too large");
  return result;
}

/// Rounds down, so that the remainder has the divisor's sign.
int64_t floor_quotient(int64_t a, int64_t b) {
  if (b == -1 && a == INT64_MIN) too_large();
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

double real_modulo(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0 ? (rest < 0) != (b < 0) : false) rest += b;
  return rest == 0 ? std::copysign(0.0, b) : rest;
}

double real_floor_quotient(double a, double b) {
  // As CPython's float_floor_div, which takes the remainder first to be exact.
  const double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (rest < 0) != (b < 0)) quotient -= 1;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double whole = std::floor(quotient);
  return quotient - whole > 0.5 ? whole + 1 : whole;
}

Value integer_arithmetic(ArithmeticOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case ArithmeticOp::add:
      if (__builtin_add_overflow(a, b, &result)) too_large();
      return result;
    case ArithmeticOp::subtract:
      if (__builtin_sub_overflow(a, b, &result)) too_large();
      return result;
    case ArithmeticOp::multiply:
      if (__builtin_mul_overflow(a, b, &result)) too_large();
      return result;
    case ArithmeticOp::power:
      return b >= 0 ? Value(integer_power(a, b)) : Value(real_power(static_cast<double>(a), static_cast<double>(b)));
    default:
      break;
  }
  if (b == 0) fault("division by zero");
  if (op == ArithmeticOp::divide) return static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b));
  if (op == ArithmeticOp::floor_divide) return floor_quotient(a, b);
  return b == -1 ? Value(0) : Value(a - floor_quotient(a, b) * b);
}

Value real_arithmetic(ArithmeticOp op, double a, double b) {
  switch (op) {
    case ArithmeticOp::add:
      return a + b;
    case ArithmeticOp::subtract:
      return a - b;
    case ArithmeticOp::multiply:
      return a * b;
    case ArithmeticOp::power:
      return real_power(a, b);
    default:
      break;
  }
  if (b == 0) fault("division by zero");
  if (op == ArithmeticOp::divide) return a / b;
  return op == ArithmeticOp::floor_divide ? real_floor_quotient(a, b) : real_modulo(a, b);
}

Value add_texts(Context& context, const Value& a, const Value& b) {
  const bool markup = a.is_markup() || b.is_markup();
  const auto part = [&](const Value& value) {
    return markup && !value.is_markup() ? escape_html(context, value.as_string()) : value.as_string();
  };
  context.budget.work(a.as_string().size());
  context.budget.work(b.as_string().size());
  if (markup) return Value::markup(part(a) + part(b));
  std::string out;
  out.reserve(a.as_string().size() + b.as_string().size());
  out += a.as_string();
  out += b.as_string();
  return out;
}

Value add_sequences(Context& context, const Value& a, const Value& b) {
  context.make(a.items().size() + b.items().size());
  List items = a.items();
  items.insert(items.end(), b.items().begin(), b.items().end());
  return make_sequence(a.as_sequence().kind, std::move(items));
}

Value repeat(Context& context, const Value& value, int64_t times) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  if (value.is_string()) {
    const std::string& text = value.as_string();
    context.budget.work(count, text.size());
    std::string out;
    out.reserve(text.size() * count);
    for (size_t i = 0; i < (text.empty() ? 0 : count); ++i) out += text;
    return value.is_markup() ? Value::markup(std::move(out)) : Value(std::move(out));
  }
  context.budget.work(count, value.items().size() * sizeof(Value));
  List out;
  for (size_t i = 0; i < (value.items().empty() ? 0 : count); ++i)
    out.insert(out.end(), value.items().begin(), value.items().end());
  return make_sequence(value.as_sequence().kind, std::move(out));
}

bool repeatable(const Value& value) {
  return value.is_string() || value.is_sequence(SequenceKind::list) || value.is_sequence(SequenceKind::tuple);
}

}  // namespace

Value arithmetic(Context& context, ArithmeticOp op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return integer_arithmetic(op, a.as_int(), b.as_int());
  if (a.is_number() && b.is_number()) return real_arithmetic(op, a.as_double(), b.as_double());
  if (op == ArithmeticOp::add) {
    if (a.is_string() && b.is_string()) return add_texts(context, a, b);
    for (const auto kind : {SequenceKind::list, SequenceKind::tuple})
      if (a.is_sequence(kind) && b.is_sequence(kind)) return add_sequences(context, a, b);
  } else if (op == ArithmeticOp::multiply) {
    if (repeatable(a) && b.is_integral()) return repeat(context, a, b.as_int());
    if (repeatable(b) && a.is_integral()) return repeat(context, b, a.as_int());
  } else if (op == ArithmeticOp::modulo && a.is_string()) {
    return percent_format(context, a, b);
  }
  refuse(op, a, b);
}

Value signed_value(const Value& value, bool negative) {
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (value.is_float()) return negative ? -value.as_double() : value.as_double();
  if (!value.is_integral()) fault("bad operand type for unary sign: '{}'", type_name(value));
  if (negative && value.as_int() == INT64_MIN) too_large();
  return negative ? -value.as_int() : value.as_int();
}

bool truthy(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_integral()) return value.as_int() != 0;
  if (value.is_float()) return value.as_double() != 0;
  if (value.is_string()) return !value.as_string().empty();
  if (value.is_sequence()) return !value.items().empty();
  if (value.is_dict()) return !value.as_dict().entries.empty();
  return true;
}

}  // namespace shoal::jinja
