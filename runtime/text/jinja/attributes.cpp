#include "runtime/text/jinja/attributes.h"

#include <algorithm>
#include <iterator>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

/// value.name without a call.
class BoundMethod : public Object {
 public:
  BoundMethod(Value self, std::string name) : self_(std::move(self)), name_(std::move(name)) {}

  bool callable() const override { return true; }
  Value call(Context& context, const Args& args) override { return jinja::call_method(context, self_, name_, args); }
  std::string text(Context&) override {
    return fmt::format("<built-in method {} of {} object>", name_, jinja::type_name(self_));
  }
  std::string_view type_name() const override { return "builtin_function_or_method"; }
  int depth() const override { return self_.depth() + 1; }

 private:
  Value self_;
  std::string name_;
};

/// Methods by which Python would change a list or dict: the sandbox hides them.
bool changes(const Value& on, std::string_view name) {
  static constexpr std::string_view kOfLists[] = {"append", "clear",  "extend",  "insert",
                                                  "pop",    "remove", "reverse", "sort"};
  static constexpr std::string_view kOfDicts[] = {"clear", "pop", "popitem", "setdefault", "update"};
  const auto in = [name](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  return on.is_dict() ? in(kOfDicts) : on.is_sequence(SequenceKind::list) && in(kOfLists);
}

Value no_element(Context& context, const Value& on, const Value& key) {
  if (key.is_string())
    return Value::undefined(fmt::format("'{} object' has no attribute '{}'", type_name(on), key.as_string()));
  return Value::undefined(fmt::format("{} object has no element {}", type_name(on), to_repr(context, key)));
}

}  // namespace

std::optional<Value> find_attribute(Context& context, const Value& on, std::string_view name) {
  if (changes(on, name) || (name.starts_with('_') && on.is_object()))
    return Value::undefined(fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(on)));
  if (find_method(on, name) || (on.is_object() && on.as_object()->has_method(name)))
    return Value(std::shared_ptr<Object>(std::make_shared<BoundMethod>(on, std::string(name))));
  if (on.is_object()) return on.as_object()->attribute(context, name);
  if (on.is_sequence(SequenceKind::tuple) && !on.as_sequence().label.empty()) {
    if (name == "grouper") return on.items()[0];
    if (name == "list") return on.items()[1];
  }
  if (on.is_sequence(SequenceKind::range)) {
    if (name == "start") return on.as_sequence().start;
    if (name == "stop") return on.as_sequence().stop;
    if (name == "step") return on.as_sequence().step;
  }
  return std::nullopt;
}

Value get_attribute(Context& context, const Value& on, std::string_view name) {
  if (on.is_undefined()) fault("{}", on.why_undefined());
  if (auto found = find_attribute(context, on, name)) return *found;
  if (on.is_dict())
    if (const Value* value = on.as_dict().find(name)) return *value;
  return Value::undefined(fmt::format("'{} object' has no attribute '{}'", type_name(on), name));
}

std::optional<size_t> item_place(int64_t index, size_t size) {
  const auto count = static_cast<int64_t>(size);
  if (index < 0) index += count;
  if (index < 0 || index >= count) return std::nullopt;
  return static_cast<size_t>(index);
}

Value get_item(Context& context, const Value& on, const Value& key) {
  if (on.is_undefined()) fault("{}", on.why_undefined());
  if (on.is_dict()) {
    const bool unhashable = key.is_dict() || key.is_sequence(SequenceKind::list);
    if (!unhashable) context.use_key(key);
    if (const Value* value = unhashable ? nullptr : on.as_dict().find(key)) return *value;
  } else if (on.is_sequence() && !on.is_sequence(SequenceKind::view) && key.is_integral()) {
    if (const auto place = item_place(key.as_int(), on.items().size())) return on.items()[*place];
  } else if (on.is_string() && key.is_integral()) {
    const std::string_view text = on.as_string();
    context.read(on);
    if (const auto place = item_place(key.as_int(), length(text))) {
      const size_t at = byte_offset(text, *place);
      const std::string_view character = text.substr(at, text::decode_utf8(text, at).size);
      return on.is_markup() ? Value::markup(std::string(character)) : Value(character);
    }
  }
  if (key.is_string())
    if (auto found = find_attribute(context, on, key.as_string())) return *found;
  return no_element(context, on, key);
}

Value get_slice(Context& context, const Value& on, const Value& start, const Value& stop, const Value& step) {
  if (on.is_undefined()) fault("{}", on.why_undefined());
  if (!on.is_string() && (!on.is_sequence() || on.is_sequence(SequenceKind::view)))
    fault("'{}' object cannot be sliced", type_name(on));
  for (const Value* part : {&start, &stop, &step})
    if (!part->is_none() && !part->is_integral()) fault("slice indices must be integers, not {}", type_name(*part));
  context.read(on);
  const auto count = static_cast<int64_t>(on.is_string() ? length(on.as_string()) : on.items().size());
  const int64_t by = step.is_none() ? 1 : step.as_int();
  if (by == 0) fault("slice step cannot be zero");
  // As Python's slice.indices: places beyond the ends are moved to them.
  const auto place = [&](const Value& given, int64_t fallback) {
    if (given.is_none()) return fallback;
    int64_t index = given.as_int();
    if (index < 0) index += count;
    return by > 0 ? std::clamp<int64_t>(index, 0, count) : std::clamp<int64_t>(index, -1, count - 1);
  };
  const int64_t first = place(start, by > 0 ? 0 : count - 1), last = place(stop, by > 0 ? count : -1);
  if (on.is_string()) {
    const std::string_view text = on.as_string();
    std::string out;
    if (by == 1) {
      const size_t begin = byte_offset(text, static_cast<size_t>(first));
      if (last > first) out = text.substr(begin, byte_offset(text.substr(begin), static_cast<size_t>(last - first)));
    } else {
      context.budget.work(text.size(), sizeof(std::string_view));
      const auto pieces = characters(text);
      for (int64_t i = first; by > 0 ? i < last : i > last;) {
        out += pieces[static_cast<size_t>(i)];
        if (__builtin_add_overflow(i, by, &i)) break;
      }
    }
    context.budget.work(out.size());
    return on.is_markup() ? Value::markup(std::move(out)) : Value(std::move(out));
  }
  List out;
  for (int64_t i = first; by > 0 ? i < last : i > last;) {
    context.grow();
    out.push_back(on.items()[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  if (!on.is_sequence(SequenceKind::range)) return make_sequence(on.as_sequence().kind, std::move(out));
  const Sequence& range = on.as_sequence();
  // Unsigned, as the ends of a range that is empty may lie beyond all numbers.
  const auto at = [&range](int64_t i) {
    return static_cast<int64_t>(static_cast<uint64_t>(range.start) +
                                static_cast<uint64_t>(i) * static_cast<uint64_t>(range.step));
  };
  const auto stride = static_cast<int64_t>(static_cast<uint64_t>(range.step) * static_cast<uint64_t>(by));
  return make_range(std::move(out), at(first), at(last), stride);
}

Value call(Context& context, const Value& on, const Args& args) {
  if (on.is_undefined()) fault("{}", on.why_undefined());
  if (!on.is_object() || !on.as_object()->callable()) fault("'{}' object is not callable", type_name(on));
  return on.as_object()->call(context, args);
}

Value call_method(Context& context, const Value& on, std::string_view name, const Args& args) {
  if (on.is_undefined()) fault("{}", on.why_undefined());
  if (const Method method = find_method(on, name)) return call_built_in(context, method, name, on, args);
  if (on.is_object() && on.as_object()->has_method(name)) return on.as_object()->call_method(context, name, args);
  return call(context, get_attribute(context, on, name), args);
}

}  // namespace shoal::jinja
