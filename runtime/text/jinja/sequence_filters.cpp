#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attribute_path.h"
#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/function_generator.h"
#include "runtime/text/jinja/print.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

Value length_of(Context&, const Value& value, const Args& args) {
  args.allow({});
  if (value.is_string()) return static_cast<int64_t>(length(value.as_string()));
  if (value.is_sequence()) return static_cast<int64_t>(value.items().size());
  if (value.is_dict()) return static_cast<int64_t>(value.as_dict().entries.size());
  if (value.is_undefined()) return 0;
  fault("object of type '{}' has no length", type_name(value));
}

Value first(Context& context, const Value& value, const Args& args) {
  args.allow({});
  auto item = iterate(context, value)->next(context);
  return item ? *item : Value::undefined("No first item, sequence was empty.");
}

Value last(Context& context, const Value& value, const Args& args) {
  args.allow({});
  auto item = iterate_backwards(context, value)->next(context);
  return item ? *item : Value::undefined("No last item, sequence was empty.");
}

Value list(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return make_list(to_list(context, value));
}

Value join(Context& context, const Value& value, const Args& args) {
  args.allow({"d", "attribute"});
  const std::string separator = to_text(context, args.get(0, "d", ""));
  const AttributePath path(args.get(1, "attribute", None{}));
  Writer out(context);
  const auto items = iterate(context, value);
  bool first_item = true;
  while (const auto item = items->next(context)) {
    if (!std::exchange(first_item, false)) out.add(separator);
    out.add(to_text(context, path.of(context, *item)));
  }
  return out.take();
}

Value reverse(Context& context, const Value& value, const Args& args) {
  args.allow({});
  if (value.is_string()) return get_slice(context, value, None{}, None{}, -1);
  if (value.is_object() && is_iterable(value)) {
    List items = to_list(context, value);
    std::reverse(items.begin(), items.end());
    return make_list(std::move(items));
  }
  return Value(std::shared_ptr<Object>(iterate_backwards(context, value)));
}

Value sum(Context& context, const Value& value, const Args& args) {
  args.allow({"attribute", "start"});
  const AttributePath path(args.get(0, "attribute", None{}));
  Value total = args.get(1, "start", 0);
  if (total.is_string()) fault("sum cannot add text; use join");
  const auto items = iterate(context, value);
  while (const auto item = items->next(context))
    total = arithmetic(context, ArithmeticOp::add, total, path.of(context, *item));
  return total;
}

Value batch(Context& context, const Value& value, const Args& args) {
  args.allow({"linecount", "fill_with"});
  const int64_t size = integer_argument(args, 0, "linecount");
  return generator(
      context,
      [value, size, fill = args.get(1, "fill_with", None{}), items = std::shared_ptr<Generator>(),
       ahead = std::optional<Value>()](Context& c) mutable -> std::optional<Value> {
        if (!items) {
          items = iterate(c, value);
          ahead = items->next(c);
          // As in Jinja, where what comes before the first item is a batch of its own if there can be none in it.
          if (ahead && size == 0) return make_list({});
        }
        List batched;
        while (ahead && (batched.empty() || static_cast<int64_t>(batched.size()) != size)) {
          c.grow();
          batched.push_back(std::move(*ahead));
          ahead = items->next(c);
        }
        if (batched.empty()) return std::nullopt;
        while (!fill.is_none() && static_cast<int64_t>(batched.size()) < size) {
          c.grow();
          batched.push_back(fill);
        }
        return make_list(std::move(batched));
      },
      value, args);
}

Value slice(Context& context, const Value& value, const Args& args) {
  args.allow({"slices", "fill_with"});
  const int64_t slices = integer_argument(args, 0, "slices");
  return generator(
      context,
      [value, slices, fill = args.get(1, "fill_with", None{}), items = std::optional<List>(), number = int64_t{0},
       at = size_t{0}](Context& c) mutable -> std::optional<Value> {
        if (!items) items = to_list(c, value);
        if (slices == 0) fault("division by zero");
        if (number >= slices) return std::nullopt;
        const auto size = static_cast<int64_t>(items->size());
        const bool extra = number++ < size % slices;
        const size_t end = at + static_cast<size_t>(size / slices) + (extra ? 1 : 0);
        c.make(end - at + 1);
        List part(items->begin() + static_cast<std::ptrdiff_t>(at), items->begin() + static_cast<std::ptrdiff_t>(end));
        at = end;
        if (!fill.is_none() && !extra) part.push_back(fill);
        return make_list(std::move(part));
      },
      value, args);
}

Value items(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return generator(
      context,
      [value, at = size_t{0}](Context& c) mutable -> std::optional<Value> {
        if (value.is_undefined()) return std::nullopt;
        if (!value.is_dict()) fault("can only get item pairs from a mapping");
        const auto& entries = value.as_dict().entries;
        if (at >= entries.size()) return std::nullopt;
        const auto& [key, item] = entries[at++];
        c.make(3);
        return make_tuple({key, item});
      },
      value);
}

Value fallback(Context&, const Value& value, const Args& args) {
  args.allow({"default_value", "boolean"});
  if (value.is_undefined() || (flag_argument(args, 1, "boolean", false) && !truthy(value)))
    return args.get(0, "default_value", "");
  return value;
}

Value attr(Context& context, const Value& value, const Args& args) {
  args.allow({"name"});
  const std::string& name = text_argument(args, 0, "name");
  if (value.is_undefined()) fault("{}", value.why_undefined());
  auto found = find_attribute(context, value, name);
  return found ? *found : Value::undefined(fmt::format("'{} object' has no attribute '{}'", type_name(value), name));
}

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  static const Table<Filter> kFilters = {
      {"length", length_of}, {"count", length_of}, {"first", first}, {"last", last},        {"list", list},
      {"join", join},        {"sum", sum},         {"batch", batch}, {"slice", slice},      {"reverse", reverse},
      {"items", items},      {"attr", attr},       {"d", fallback},  {"default", fallback},
  };
  return find_in(kFilters, name);
}

}  // namespace shoal::jinja
