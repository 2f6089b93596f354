#pragma once
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

/// The values templates compute with. They behave like Python's. Strings, sequences and dicts never change once made
/// (the sandbox that transformers uses forbids it too), so they are shared freely and form no cycles.
namespace shoal::jinja {

class Value;
class Context;
struct Args;
using List = std::vector<Value>;

/// What a name without a value stands for, and why, for messages.
struct Undefined {
  std::shared_ptr<const std::string> what;
};
struct None {};

/// Text; `markup` marks what `safe` and `escape` give, HTML that is not to be escaped (again).
struct Text {
  std::string bytes;
  bool markup = false;
};

enum class SequenceKind {
  list,
  tuple,
  range,
  view,  // what dict.items() and the like give
};

struct Sequence;
struct Dict;

/// A value with behaviour of its own: namespaces, macros, functions, loop, generators.
class Object : public std::enable_shared_from_this<Object> {
 public:
  Object() = default;
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  /// The attribute `name`; none where there is no such attribute.
  virtual std::optional<Value> attribute(Context& context, std::string_view name);
  virtual bool has_method(std::string_view) const { return false; }
  virtual Value call_method(Context& context, std::string_view name, const Args& args);
  virtual bool callable() const { return false; }
  virtual Value call(Context& context, const Args& args);
  /// What printing it gives.
  virtual std::string text(Context& context) = 0;
  /// The name of its type, for messages.
  virtual std::string_view type_name() const = 0;
  /// How many values are nested in it that die with it.
  virtual int depth() const { return 0; }
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None) : data_(None{}) {}
  Value(bool b) : data_(b) {}
  Value(int64_t i) : data_(i) {}
  Value(int i) : data_(int64_t{i}) {}
  Value(double d) : data_(d) {}
  Value(std::string text) : data_(std::make_shared<const Text>(Text{std::move(text)})) {}
  Value(std::string_view text) : Value(std::string(text)) {}
  Value(const char* text) : Value(std::string(text)) {}
  Value(std::shared_ptr<const Sequence> sequence) : data_(std::move(sequence)) {}
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<Object> object) : data_(std::move(object)) {}
  static Value markup(std::string text);
  /// `what` says which name or attribute is missing: "'tools' is undefined".
  static Value undefined(std::string what);

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_int() const { return std::holds_alternative<int64_t>(data_); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_string() const { return std::holds_alternative<std::shared_ptr<const Text>>(data_); }
  bool is_markup() const { return is_string() && std::get<std::shared_ptr<const Text>>(data_)->markup; }
  bool is_sequence() const { return std::holds_alternative<std::shared_ptr<const Sequence>>(data_); }
  bool is_sequence(SequenceKind kind) const;
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  bool is_object() const { return std::holds_alternative<std::shared_ptr<Object>>(data_); }
  /// An integer or a bool, which Python counts among the integers.
  bool is_integral() const { return is_int() || is_bool(); }
  bool is_number() const { return is_integral() || is_float(); }

  bool as_bool() const { return std::get<bool>(data_); }
  /// The number of an integral value.
  int64_t as_int() const { return is_bool() ? as_bool() : std::get<int64_t>(data_); }
  /// The number of any numeric value.
  double as_double() const { return is_float() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  const std::string& as_string() const { return std::get<std::shared_ptr<const Text>>(data_)->bytes; }
  const Sequence& as_sequence() const { return *std::get<std::shared_ptr<const Sequence>>(data_); }
  const List& items() const;
  const Dict& as_dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  const std::shared_ptr<Object>& as_object() const { return std::get<std::shared_ptr<Object>>(data_); }
  /// Why this undefined value is undefined.
  std::string why_undefined() const;

  /// How many sequences and dicts are nested in this value.
  int depth() const;
  /// True where both are the very same thing (Python's `is`).
  bool same_as(const Value& other) const;

 private:
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>, std::shared_ptr<const Sequence>,
               std::shared_ptr<const Dict>, std::shared_ptr<Object>>
      data_;
};

/// An order of all values that can be keys of a dict, in which values are equal where Python takes them as one key
/// (1, 1.0 and True are).
struct KeyLess {
  bool operator()(const Value& a, const Value& b) const;
};

/// Below, at or above 0 as `a` is less than, equal to or more than `b`; exact, and 0 where one is NaN.
int compare_numbers(const Value& a, const Value& b);

/// Python's name of the value's type, for messages.
std::string_view type_name(const Value& value);

/// How many bytes are looked at to compare `value` with another key; faults where it cannot be a key of a dict (a list,
/// a dict), or is a tuple of very many parts.
size_t key_bytes(const Value& value);

struct Sequence {
  SequenceKind kind = SequenceKind::list;
  List items;
  int depth = 1;
  std::string label;                      // what a view is called
  int64_t start = 0, stop = 0, step = 1;  // of a range
};

/// Throws Fault where the values are nested too deeply: freeing and printing them is recursive.
Value make_sequence(SequenceKind kind, List items, std::string label = {});
/// Python's range(start, stop, step); `items` are what is in it.
Value make_range(List items, int64_t start, int64_t stop, int64_t step);
inline Value make_list(List items) { return make_sequence(SequenceKind::list, std::move(items)); }
inline Value make_tuple(List items) { return make_sequence(SequenceKind::tuple, std::move(items)); }

/// A dict in insertion order.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;

  /// Null where there is no such key; faults where the key cannot be one.
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  /// Adds or replaces an entry.
  void set(Value key, Value value);

 private:
  std::optional<size_t> position(const Value& key) const;
  std::map<Value, size_t, KeyLess> index_;  // once there are many
};

inline Value make_dict(Dict dict) { return std::make_shared<const Dict>(std::move(dict)); }

/// What a call gives: positional arguments, then named ones.
struct Args {
  List positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The argument at `index` or with `name`; null where it was not given.
  const Value* find(size_t index, std::string_view name) const;
  Value get(size_t index, std::string_view name, Value fallback) const;
  /// As get, but the argument must be there.
  const Value& need(size_t index, std::string_view name) const;
  /// Throws Fault where there are arguments besides these; `names` are those that positional ones may take, in order.
  void allow(std::initializer_list<std::string_view> names) const;
};

}  // namespace shoal::jinja
