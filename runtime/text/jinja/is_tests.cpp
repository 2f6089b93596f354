#include "runtime/text/jinja/is_tests.h"

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/print.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// A test that only looks at the value.
template <bool (*holds)(const Value&)>
bool plain(Context&, const Value& value, const Args& args) {
  args.allow({});
  return holds(value);
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_boolean(const Value& v) { return v.is_bool(); }
bool is_true(const Value& v) { return v.is_bool() && v.as_bool(); }
bool is_false(const Value& v) { return v.is_bool() && !v.as_bool(); }
bool is_integer(const Value& v) { return v.is_int(); }
bool is_float(const Value& v) { return v.is_float(); }
bool is_number(const Value& v) { return v.is_number(); }
bool is_string(const Value& v) { return v.is_string(); }
bool is_mapping(const Value& v) { return v.is_dict(); }
/// What is undefined has the means to be called in Jinja, though calling it fails.
bool is_callable(const Value& v) { return v.is_undefined() || (v.is_object() && v.as_object()->callable()); }
bool is_escaped(const Value& v) { return v.is_markup(); }

/// What has a length and items; what is undefined has both in Jinja.
bool is_sequence(const Value& v) {
  return v.is_string() || v.is_dict() || v.is_undefined() || (v.is_sequence() && !v.is_sequence(SequenceKind::view));
}

template <CompareOp op>
bool compares(Context& context, const Value& value, const Args& args) {
  args.allow({"other"});
  return compare(context, op, value, args.need(0, "other"));
}

bool same_as(Context&, const Value& value, const Args& args) {
  args.allow({"other"});
  return value.same_as(args.need(0, "other"));
}

bool remainder_is(Context& context, const Value& value, const Value& divisor, int rest) {
  return equal(context, arithmetic(context, ArithmeticOp::modulo, value, divisor), rest);
}

bool odd(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return remainder_is(context, value, 2, 1);
}

bool even(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return remainder_is(context, value, 2, 0);
}

bool divisible_by(Context& context, const Value& value, const Args& args) {
  args.allow({"num"});
  return remainder_is(context, value, args.need(0, "num"), 0);
}

bool lower(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return truthy(call_method(context, Value(to_text(context, value)), "islower", {}));
}

bool upper(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return truthy(call_method(context, Value(to_text(context, value)), "isupper", {}));
}

bool names_filter(Context& context, const Value& value, const Args& args) {
  args.allow({});
  context.use_key(value);
  return value.is_string() && find_filter(value.as_string());
}

bool names_test(Context& context, const Value& value, const Args& args) {
  args.allow({});
  context.use_key(value);
  return value.is_string() && find_test(value.as_string());
}

}  // namespace

Test find_test(std::string_view name) {
  static const Table<Test> kTests = {
      {"defined", plain<is_defined>},
      {"undefined", plain<is_undefined>},
      {"none", plain<is_none>},
      {"boolean", plain<is_boolean>},
      {"true", plain<is_true>},
      {"false", plain<is_false>},
      {"integer", plain<is_integer>},
      {"float", plain<is_float>},
      {"number", plain<is_number>},
      {"string", plain<is_string>},
      {"mapping", plain<is_mapping>},
      {"sequence", plain<is_sequence>},
      {"iterable", plain<is_iterable>},
      {"callable", plain<is_callable>},
      {"escaped", plain<is_escaped>},
      {"sameas", same_as},
      {"odd", odd},
      {"even", even},
      {"divisibleby", divisible_by},
      {"lower", lower},
      {"upper", upper},
      {"filter", names_filter},
      {"test", names_test},
      {"in", compares<CompareOp::in>},
      {"==", compares<CompareOp::equal>},
      {"eq", compares<CompareOp::equal>},
      {"equalto", compares<CompareOp::equal>},
      {"!=", compares<CompareOp::not_equal>},
      {"ne", compares<CompareOp::not_equal>},
      {">", compares<CompareOp::greater>},
      {"gt", compares<CompareOp::greater>},
      {"greaterthan", compares<CompareOp::greater>},
      {">=", compares<CompareOp::greater_equal>},
      {"ge", compares<CompareOp::greater_equal>},
      {"<", compares<CompareOp::less>},
      {"lt", compares<CompareOp::less>},
      {"lessthan", compares<CompareOp::less>},
      {"<=", compares<CompareOp::less_equal>},
      {"le", compares<CompareOp::less_equal>},
  };
  return find_in(kTests, name);
}

}  // namespace shoal::jinja
