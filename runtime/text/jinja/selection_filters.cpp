#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attribute_path.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/function_generator.h"
#include "runtime/text/jinja/is_tests.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// `args` without the first `count`.
Args without_first(const Args& args, size_t count) {
  Args out = args;
  out.positional.erase(out.positional.begin(), out.positional.begin() + static_cast<std::ptrdiff_t>(count));
  return out;
}

using Change = std::function<Value(Context&, const Value&)>;

Change map_function(const Args& args) {
  if (args.positional.empty() && args.find(0, "attribute")) {
    for (const auto& [name, value] : args.named)
      if (name != "attribute" && name != "default") fault("unexpected argument '{}'", name);
    const Value fallback = args.get(0, "default", None{});
    return [path = AttributePath(*args.find(0, "attribute")), fallback](Context& context, const Value& item) {
      return path.of(context, item, fallback.is_none() ? nullptr : &fallback);
    };
  }
  if (args.positional.empty()) fault("map needs the name of a filter");
  const std::string& name = as_text(args.positional[0], "the name of a filter");
  const Filter filter = find_filter(name);
  if (!filter) fault("no filter named '{}'", name);
  return [filter, rest = without_first(args, 1)](Context& context, const Value& item) {
    context.read(item);
    return filter(context, item, rest);
  };
}

Value map(Context& context, const Value& value, const Args& args) {
  if (!truthy(value)) return generator(context, [](Context&) -> std::optional<Value> { return std::nullopt; }, {});
  // Prepared only when the first item is asked for: as in Jinja, a wrong use of map that nothing comes of is no fault.
  return generator(
      context,
      [value, args, items = std::shared_ptr<Generator>(),
       change = Change()](Context& c) mutable -> std::optional<Value> {
        if (!items) {
          change = map_function(args);
          items = iterate(c, value);
        }
        auto item = items->next(c);
        return item ? std::optional(change(c, *item)) : std::nullopt;
      },
      value, args);
}

using Condition = std::function<bool(Context&, const Value&)>;

Condition select_condition(const Args& args, bool by_attribute) {
  if (by_attribute && args.positional.empty()) fault("the name of an attribute is missing");
  const AttributePath path(by_attribute ? args.positional[0] : Value(None{}));
  const size_t before = by_attribute ? 1 : 0;
  if (args.positional.size() <= before) {
    return [path](Context& context, const Value& item) { return truthy(path.of(context, item)); };
  }
  const std::string& name = as_text(args.positional[before], "the name of a test");
  const Test test = find_test(name);
  if (!test) fault("no test named '{}'", name);
  return [path, test, rest = without_first(args, before + 1)](Context& context, const Value& item) {
    return test(context, path.of(context, item), rest);
  };
}

template <bool by_attribute, bool wanted>
Value select(Context& context, const Value& value, const Args& args) {
  if (!truthy(value)) return generator(context, [](Context&) -> std::optional<Value> { return std::nullopt; }, {});
  return generator(
      context,
      [value, args, items = std::shared_ptr<Generator>(),
       condition = Condition()](Context& c) mutable -> std::optional<Value> {
        if (!items) {
          condition = select_condition(args, by_attribute);
          items = iterate(c, value);
        }
        while (auto item = items->next(c))
          if (condition(c, *item) == wanted) return item;
        return std::nullopt;
      },
      value, args);
}

}  // namespace

Filter find_selection_filter(std::string_view name) {
  static const Table<Filter> kFilters = {{"map", map},
                                         {"select", select<false, true>},
                                         {"reject", select<false, false>},
                                         {"selectattr", select<true, true>},
                                         {"rejectattr", select<true, false>}};
  return find_in(kFilters, name);
}

}  // namespace shoal::jinja
