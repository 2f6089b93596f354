#include <algorithm>
#include <cmath>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

Value equal_items(Context& context, const Value& self, const Args& args) {
  args.allow({"value"});
  const Value& wanted = args.need(0, "value");
  int64_t n = 0;
  for (const Value& item : self.items()) n += equal(context, item, wanted);
  return n;
}

Value index(Context& context, const Value& self, const Args& args) {
  args.allow({"value", "start", "stop"});
  const Value& wanted = args.need(0, "value");
  const auto size = static_cast<int64_t>(self.items().size());
  const auto place = [&](int64_t given) { return std::clamp<int64_t>(given < 0 ? given + size : given, 0, size); };
  const int64_t stop = place(integer_argument(args, 2, "stop", size));
  for (int64_t i = place(integer_argument(args, 1, "start", 0)); i < stop; ++i)
    if (equal(context, self.items()[static_cast<size_t>(i)], wanted)) return i;
  fault("the value is not in the {}", type_name(self));
}

Value copy_list(Context& context, const Value& self, const Args& args) {
  args.allow({});
  context.make(self.items().size());
  return make_list(self.items());
}

Value get(Context& context, const Value& self, const Args& args) {
  args.allow({"key", "default"});
  const Value& key = args.need(0, "key");
  context.use_key(key);
  const Value* value = self.as_dict().find(key);
  return value ? *value : args.get(1, "default", None{});
}

template <class Pick>
Value view(Context& context, const Value& self, const Args& args, const char* label, Pick pick) {
  args.allow({});
  const auto& entries = self.as_dict().entries;
  context.make(entries.size() * 3);
  List items;
  items.reserve(entries.size());
  for (const auto& entry : entries) items.push_back(pick(entry));
  return make_sequence(SequenceKind::view, std::move(items), label);
}

Value keys(Context& context, const Value& self, const Args& args) {
  return view(context, self, args, "dict_keys", [](const auto& entry) { return entry.first; });
}

Value values(Context& context, const Value& self, const Args& args) {
  return view(context, self, args, "dict_values", [](const auto& entry) { return entry.second; });
}

Value items(Context& context, const Value& self, const Args& args) {
  return view(context, self, args, "dict_items", [](const auto& entry) {
    return make_tuple({entry.first, entry.second});
  });
}

Value copy_dict(Context&, const Value& self, const Args& args) {
  args.allow({});
  return self;  // never changes, so it may be the same
}

/// value.is_integer() of a float.
Value is_integer(Context&, const Value& self, const Args& args) {
  args.allow({});
  const double number = self.as_double();
  return std::isfinite(number) && std::trunc(number) == number;
}

}  // namespace

Method find_container_method(const Value& self, std::string_view name) {
  static const Table<Method> kOfDicts = {
      {"get", get}, {"keys", keys}, {"values", values}, {"items", items}, {"copy", copy_dict}};
  static const Table<Method> kOfSequences = {{"count", equal_items}, {"index", index}};
  if (self.is_dict()) return find_in(kOfDicts, name);
  if (self.is_float() && name == "is_integer") return is_integer;
  if (!self.is_sequence() || self.is_sequence(SequenceKind::view)) return nullptr;
  if (self.is_sequence(SequenceKind::list) && name == "copy") return copy_list;
  return find_in(kOfSequences, name);
}

}  // namespace shoal::jinja
