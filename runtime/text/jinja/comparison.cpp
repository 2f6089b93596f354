#include <algorithm>
#include <cmath>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/operators.h"

namespace shoal::jinja {
namespace {

/// What looking at a value at all is charged.
constexpr size_t kStepBytes = 16;

bool equal_sequences(Context& context, const Sequence& a, const Sequence& b) {
  if (&a == &b) return true;
  if (a.kind != b.kind || a.kind == SequenceKind::view || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i)
    if (!equal(context, a.items[i], b.items[i])) return false;
  return true;
}

bool equal_dicts(Context& context, const Dict& a, const Dict& b) {
  if (&a == &b) return true;
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    context.use_key(key);
    const Value* other = b.find(key);
    if (!other || !equal(context, value, *other)) return false;
  }
  return true;
}

bool is_nan(const Value& value) { return value.is_float() && std::isnan(value.as_double()); }

/// a < b, or where `or_equal` a <= b.
bool ordered(Context& context, const Value& a, const Value& b, bool or_equal) {
  const Level level(context.budget);
  context.budget.work(kStepBytes);
  if (a.is_number() && b.is_number()) {
    if (is_nan(a) || is_nan(b)) return false;
    return compare_numbers(a, b) < (or_equal ? 1 : 0);
  }
  if (a.is_string() && b.is_string()) {
    // UTF-8 has the order of code points.
    context.budget.work(std::min(a.as_string().size(), b.as_string().size()));
    const int order = a.as_string().compare(b.as_string());
    return order < (or_equal ? 1 : 0);
  }
  for (const auto kind : {SequenceKind::list, SequenceKind::tuple}) {
    if (!a.is_sequence(kind) || !b.is_sequence(kind)) continue;
    const List &x = a.items(), &y = b.items();
    size_t i = 0;
    while (i < x.size() && i < y.size() && equal(context, x[i], y[i])) ++i;
    if (i < x.size() && i < y.size()) return ordered(context, x[i], y[i], or_equal);
    return or_equal ? x.size() <= y.size() : x.size() < y.size();
  }
  for (const Value* value : {&a, &b})
    if (value->is_undefined()) fault("{}", value->why_undefined());
  fault("there is no order between '{}' and '{}'", type_name(a), type_name(b));
}

}  // namespace

bool equal(Context& context, const Value& a, const Value& b) {
  const Level level(context.budget);
  context.budget.work(kStepBytes);
  if (a.is_number() && b.is_number()) return !is_nan(a) && !is_nan(b) && compare_numbers(a, b) == 0;
  if (a.is_string() && b.is_string()) {
    if (a.as_string().size() != b.as_string().size()) return false;
    context.read(a);
    return a.as_string() == b.as_string();
  }
  if (a.is_sequence() && b.is_sequence()) return equal_sequences(context, a.as_sequence(), b.as_sequence());
  if (a.is_dict() && b.is_dict()) return equal_dicts(context, a.as_dict(), b.as_dict());
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  return a.same_as(b);
}

bool less(Context& context, const Value& a, const Value& b) { return ordered(context, a, b, false); }

bool contains(Context& context, const Value& container, const Value& item) {
  if (container.is_string()) {
    if (!item.is_string()) fault("'in <string>' requires a string on its left, not {}", type_name(item));
    context.read(container);
    context.read(item);
    return find_text(container.as_string(), item.as_string()) != std::string::npos;
  }
  if (container.is_dict()) {
    context.use_key(item);
    return container.as_dict().find(item) != nullptr;
  }
  if (!is_iterable(container)) fault("argument of type '{}' is not iterable", type_name(container));
  const auto items = iterate(context, container);
  while (const auto candidate = items->next(context))
    if (equal(context, *candidate, item)) return true;
  return false;
}

bool compare(Context& context, CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::equal:
      return equal(context, a, b);
    case CompareOp::not_equal:
      return !equal(context, a, b);
    case CompareOp::less:
      return ordered(context, a, b, false);
    case CompareOp::less_equal:
      return ordered(context, a, b, true);
    case CompareOp::greater:
      return ordered(context, b, a, false);
    case CompareOp::greater_equal:
      return ordered(context, b, a, true);
    case CompareOp::in:
      return contains(context, b, a);
    case CompareOp::not_in:
      return !contains(context, b, a);
  }
  return false;
}

}  // namespace shoal::jinja
