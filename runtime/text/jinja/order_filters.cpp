#include <algorithm>
#include <set>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attribute_path.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/function_generator.h"
#include "runtime/text/jinja/table.h"

/// Filters that go by an order or by equality of items.
namespace shoal::jinja {
namespace {

using Keyed = std::vector<std::pair<Value, Value>>;  // what an item is sorted by, and the item

List sorted(Context& context, Keyed items, bool reverse) {
  std::stable_sort(items.begin(), items.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(context, b.first, a.first) : less(context, a.first, b.first);
  });
  List out;
  out.reserve(items.size());
  for (auto& [key, item] : items) out.push_back(std::move(item));
  return out;
}

Value key_of(Context& context, const AttributePath& path, const Value& item, bool case_sensitive) {
  const Value key = path.of(context, item);
  return case_sensitive ? key : ignore_case(context, key);
}

std::vector<AttributePath> comma_separated_paths(const Value& attribute) {
  std::vector<AttributePath> out;
  if (!attribute.is_string()) return {AttributePath(attribute)};
  std::string_view rest = attribute.as_string();
  for (size_t comma; (comma = rest.find(',')) != rest.npos; rest.remove_prefix(comma + 1))
    out.emplace_back(Value(rest.substr(0, comma)));
  out.emplace_back(Value(rest));
  return out;
}

Value sort(Context& context, const Value& value, const Args& args) {
  args.allow({"reverse", "case_sensitive", "attribute"});
  const bool case_sensitive = flag_argument(args, 1, "case_sensitive", false);
  const auto paths = comma_separated_paths(args.get(2, "attribute", None{}));
  Keyed items;
  for (const Value& item : to_list(context, value)) {
    List key;
    for (const auto& path : paths) key.push_back(key_of(context, path, item, case_sensitive));
    context.make(2 + key.size());
    items.emplace_back(make_list(std::move(key)), item);
  }
  return make_list(sorted(context, std::move(items), integer_argument(args, 0, "reverse", 0) != 0));
}

Value dictsort(Context& context, const Value& value, const Args& args) {
  args.allow({"case_sensitive", "by", "reverse"});
  const bool case_sensitive = flag_argument(args, 0, "case_sensitive", false);
  const Value by = args.get(1, "by", "key");
  const bool by_key = equal(context, by, "key");
  if (!by_key && !equal(context, by, "value")) fault("dictsort goes by 'key' or 'value' only");
  if (value.is_undefined()) fault("{}", value.why_undefined());
  if (!value.is_dict()) fault("dictsort needs a dict, not {}", type_name(value));
  Keyed items;
  for (const auto& [key, item] : value.as_dict().entries) {
    context.make(4);
    const Value& sort_by = by_key ? key : item;
    items.emplace_back(case_sensitive ? sort_by : ignore_case(context, sort_by), make_tuple({key, item}));
  }
  return make_list(sorted(context, std::move(items), integer_argument(args, 2, "reverse", 0) != 0));
}

Value unique(Context& context, const Value& value, const Args& args) {
  args.allow({"case_sensitive", "attribute"});
  const bool case_sensitive = flag_argument(args, 0, "case_sensitive", false);
  return generator(
      context,
      [value, case_sensitive, path = AttributePath(args.get(1, "attribute", None{})),
       items = std::shared_ptr<Generator>(),
       seen = std::set<Value, KeyLess>()](Context& c) mutable -> std::optional<Value> {
        if (!items) items = iterate(c, value);
        while (auto item = items->next(c)) {
          Value key = key_of(c, path, *item, case_sensitive);
          c.use_key(key);
          c.make_entries(1);
          if (seen.insert(std::move(key)).second) return item;
        }
        return std::nullopt;
      },
      value, args);
}

template <bool largest>
Value extreme(Context& context, const Value& value, const Args& args) {
  args.allow({"case_sensitive", "attribute"});
  const bool case_sensitive = flag_argument(args, 0, "case_sensitive", false);
  const AttributePath path(args.get(1, "attribute", None{}));
  const auto items = iterate(context, value);
  auto best = items->next(context);
  if (!best) return Value::undefined("No aggregated item, sequence was empty.");
  Value best_key = key_of(context, path, *best, case_sensitive);
  while (auto item = items->next(context)) {
    Value key = key_of(context, path, *item, case_sensitive);
    if (!(largest ? less(context, best_key, key) : less(context, key, best_key))) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return *best;
}

Value groupby(Context& context, const Value& value, const Args& args) {
  args.allow({"attribute", "default", "case_sensitive"});
  const AttributePath path(args.need(0, "attribute"));
  const Value fallback = args.get(1, "default", None{});
  const Value* stand_in = fallback.is_none() ? nullptr : &fallback;
  const bool case_sensitive = flag_argument(args, 2, "case_sensitive", false);
  const auto key_in_order = [&](const Value& item) {
    const Value key = path.of(context, item, stand_in);
    return case_sensitive ? key : ignore_case(context, key);
  };
  Keyed items;
  for (const Value& item : to_list(context, value)) {
    context.make(2);
    items.emplace_back(key_in_order(item), item);
  }
  List groups, group;
  const auto finish_group = [&] {
    if (group.empty()) return;
    context.make(group.size() + 2);
    Value key = path.of(context, group[0], stand_in);
    groups.push_back(
        make_sequence(SequenceKind::tuple, {std::move(key), make_list(std::exchange(group, {}))}, "group"));
  };
  Value last_key;
  for (const Value& item : sorted(context, std::move(items), false)) {
    Value key = key_in_order(item);
    if (!group.empty() && !equal(context, key, last_key)) finish_group();
    last_key = std::move(key);
    group.push_back(item);
  }
  finish_group();
  return make_list(std::move(groups));
}

}  // namespace

Filter find_order_filter(std::string_view name) {
  static const Table<Filter> kFilters = {{"sort", sort},          {"dictsort", dictsort}, {"unique", unique},
                                         {"min", extreme<false>}, {"max", extreme<true>}, {"groupby", groupby}};
  return find_in(kFilters, name);
}

}  // namespace shoal::jinja
