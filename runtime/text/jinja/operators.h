#pragma once
#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

/// Python's operators.
namespace shoal::jinja {

enum class ArithmeticOp { add, subtract, multiply, divide, floor_divide, modulo, power };
Value arithmetic(Context& context, ArithmeticOp op, const Value& a, const Value& b);

/// -value or +value.
Value signed_value(const Value& value, bool negative);

bool truthy(const Value& value);

enum class CompareOp { equal, not_equal, less, less_equal, greater, greater_equal, in, not_in };
bool compare(Context& context, CompareOp op, const Value& a, const Value& b);

bool equal(Context& context, const Value& a, const Value& b);
/// a < b; faults where Python has no order for the two.
bool less(Context& context, const Value& a, const Value& b);
/// item in container.
bool contains(Context& context, const Value& container, const Value& item);

}  // namespace shoal::jinja
