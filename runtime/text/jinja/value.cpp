#include "runtime/text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {
namespace {

constexpr int kMaxValueDepth = 300;
/// Up to this many entries, looking through all of them beats an index.
constexpr size_t kSmallDict = 8;

int deeper(int depth) {
  if (depth >= kMaxValueDepth) fault("values are nested more than {} deep", kMaxValueDepth);
  return depth + 1;
}

enum class KeyKind { none, undefined, number, text, sequence, object };

KeyKind key_kind(const Value& key) {
  if (key.is_none()) return KeyKind::none;
  if (key.is_undefined()) return KeyKind::undefined;
  if (key.is_number()) return KeyKind::number;
  if (key.is_string()) return KeyKind::text;
  if (key.is_sequence()) return KeyKind::sequence;
  return KeyKind::object;
}

bool number_less(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int();
  if (std::isnan(a.as_double()) || std::isnan(b.as_double())) {
    return std::isnan(a.as_double()) && !std::isnan(b.as_double());  // all NaNs are one key, before all numbers
  }
  return compare_numbers(a, b) < 0;
}

/// Lists that share their parts have many more of these than they take memory.
constexpr size_t kMaxKeyParts = 1000;

size_t count_key_bytes(const Value& value, size_t& parts) {
  if (++parts > kMaxKeyParts) fault("a tuple of more than {} parts cannot be a key", kMaxKeyParts);
  if (value.is_string()) return value.as_string().size() + 1;
  if (value.is_dict() || value.is_sequence(SequenceKind::list) || value.is_sequence(SequenceKind::view))
    fault("unhashable type: '{}'", type_name(value));
  if (!value.is_sequence(SequenceKind::tuple)) return value.is_sequence() ? value.items().size() : 1;
  size_t bytes = 1;
  for (const Value& item : value.items()) bytes += count_key_bytes(item, parts);
  return bytes;
}

const void* address(const Value& value) {
  return value.is_object() ? static_cast<const void*>(value.as_object().get()) : &value.as_dict();
}

}  // namespace

std::optional<Value> Object::attribute(Context&, std::string_view) { return std::nullopt; }

Value Object::call_method(Context&, std::string_view name, const Args&) {
  fault("'{}' object has no method '{}'", type_name(), name);
}

Value Object::call(Context&, const Args&) { fault("'{}' object cannot be called", type_name()); }

int compare_numbers(const Value& a, const Value& b) {
  const auto compared = [](auto x, auto y) { return x < y ? -1 : x > y ? 1 : 0; };
  if (a.is_integral() && b.is_integral()) return compared(a.as_int(), b.as_int());
  if (a.is_float() && b.is_float()) return compared(a.as_double(), b.as_double());
  if (a.is_float()) return -compare_numbers(b, a);
  // An integer and a float: converting the integer would round it.
  const double number = b.as_double();
  if (number >= 9223372036854775808.0) return -1;
  if (number < -9223372036854775808.0) return 1;
  const double whole = std::trunc(number);
  const int order = compared(a.as_int(), static_cast<int64_t>(whole));
  return order != 0 ? order : compared(whole, number);
}

bool KeyLess::operator()(const Value& a, const Value& b) const {
  const KeyKind kind = key_kind(a);
  if (kind != key_kind(b)) return kind < key_kind(b);
  switch (kind) {
    case KeyKind::number:
      return number_less(a, b);
    case KeyKind::text:
      return a.as_string() < b.as_string();
    case KeyKind::sequence:
      return std::lexicographical_compare(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                                          KeyLess());
    case KeyKind::object:
      return std::less<>()(address(a), address(b));
    default:
      return false;
  }
}

size_t key_bytes(const Value& value) {
  size_t parts = 0;
  return count_key_bytes(value, parts);
}

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_int()) return "int";
  if (value.is_float()) return "float";
  if (value.is_string()) return value.is_markup() ? "Markup" : "str";
  if (value.is_dict()) return "dict";
  if (value.is_object()) return value.as_object()->type_name();
  switch (value.as_sequence().kind) {
    case SequenceKind::list:
      return "list";
    case SequenceKind::tuple:
      return "tuple";
    case SequenceKind::range:
      return "range";
    case SequenceKind::view:
      break;
  }
  return value.as_sequence().label;
}

Value Value::markup(std::string text) {
  Value out;
  out.data_ = std::make_shared<const Text>(Text{std::move(text), true});
  return out;
}

Value Value::undefined(std::string what) {
  Value out;
  out.data_ = Undefined{std::make_shared<const std::string>(std::move(what))};
  return out;
}

std::string Value::why_undefined() const {
  const auto& what = std::get<Undefined>(data_).what;
  return what ? *what : "the value is undefined";
}

bool Value::is_sequence(SequenceKind kind) const { return is_sequence() && as_sequence().kind == kind; }

const List& Value::items() const { return as_sequence().items; }

int Value::depth() const {
  if (is_sequence()) return as_sequence().depth;
  if (is_dict()) return as_dict().depth;
  if (is_object()) return as_object()->depth();
  return 0;
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_string()) return as_string() == other.as_string();
  if (is_bool()) return as_bool() == other.as_bool();
  if (is_int()) return as_int() == other.as_int();
  if (is_float()) return as_double() == other.as_double();
  if (is_sequence()) return &as_sequence() == &other.as_sequence();
  if (is_dict()) return &as_dict() == &other.as_dict();
  if (is_object()) return as_object() == other.as_object();
  return is_none();
}

Value make_sequence(SequenceKind kind, List items, std::string label) {
  auto sequence = std::make_shared<Sequence>();
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  sequence->kind = kind;
  sequence->items = std::move(items);
  sequence->depth = deeper(depth);
  sequence->label = std::move(label);
  return std::shared_ptr<const Sequence>(std::move(sequence));
}

Value make_range(List items, int64_t start, int64_t stop, int64_t step) {
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = SequenceKind::range;
  sequence->items = std::move(items);
  sequence->start = start;
  sequence->stop = stop;
  sequence->step = step;
  return std::shared_ptr<const Sequence>(std::move(sequence));
}

std::optional<size_t> Dict::position(const Value& key) const {
  static_cast<void>(key_bytes(key));
  if (!index_.empty()) {
    const auto it = index_.find(key);
    return it == index_.end() ? std::nullopt : std::optional(it->second);
  }
  const KeyLess less;
  for (size_t i = 0; i < entries.size(); ++i)
    if (!less(entries[i].first, key) && !less(key, entries[i].first)) return i;
  return std::nullopt;
}

const Value* Dict::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.as_string()));
  const auto at = position(key);
  return at ? &entries[*at].second : nullptr;
}

const Value* Dict::find(std::string_view key) const {
  if (!index_.empty()) {
    const auto at = position(Value(key));
    return at ? &entries[*at].second : nullptr;
  }
  for (const auto& [k, v] : entries)
    if (k.is_string() && k.as_string() == key) return &v;
  return nullptr;
}

void Dict::set(Value key, Value value) {
  depth = std::max(depth, deeper(std::max(key.depth(), value.depth())));
  if (const auto at = position(key)) {
    entries[*at].second = std::move(value);
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() <= kSmallDict) return;
  // From here on the index holds all entries.
  for (size_t i = index_.size(); i < entries.size(); ++i) index_.emplace(entries[i].first, i);
}

const Value* Args::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named)
    if (key == name) return &value;
  return nullptr;
}

Value Args::get(size_t index, std::string_view name, Value fallback) const {
  const Value* value = find(index, name);
  return value ? *value : std::move(fallback);
}

const Value& Args::need(size_t index, std::string_view name) const {
  const Value* value = find(index, name);
  if (!value) fault("the argument '{}' is missing", name);
  return *value;
}

void Args::allow(std::initializer_list<std::string_view> names) const {
  if (positional.size() > names.size())
    fault("{} arguments given, at most {} expected", positional.size(), names.size());
  for (const auto& [key, value] : named) {
    const auto it = std::find(names.begin(), names.end(), key);
    if (it == names.end()) fault("unexpected argument '{}'", key);
    if (static_cast<size_t>(it - names.begin()) < positional.size()) fault("argument '{}' given twice", key);
  }
}

}  // namespace shoal::jinja
