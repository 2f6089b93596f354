#include "runtime/text/jinja/generator.h"

#include "runtime/text/jinja/fault.h"
#include "runtime/text/utf8.h"

namespace shoal::jinja {
namespace {

/// What a chain of generators may be long: each asks the one before it, and is freed inside of it.
constexpr int kMaxOperandDepth = 300;

class SequenceItems : public Generator {
 public:
  SequenceItems(Value sequence, bool backwards)
      : Generator(sequence.depth()), sequence_(std::move(sequence)), backwards_(backwards) {}

 private:
  std::optional<Value> make_next(Context&) override {
    const List& items = sequence_.items();
    if (at_ >= items.size()) return std::nullopt;
    const size_t place = at_++;
    return items[backwards_ ? items.size() - 1 - place : place];
  }

  Value sequence_;
  bool backwards_;
  size_t at_ = 0;
};

class DictKeys : public Generator {
 public:
  DictKeys(Value dict, bool backwards) : Generator(dict.depth()), dict_(std::move(dict)), backwards_(backwards) {}

 private:
  std::optional<Value> make_next(Context&) override {
    const auto& entries = dict_.as_dict().entries;
    if (at_ >= entries.size()) return std::nullopt;
    const size_t place = at_++;
    return entries[backwards_ ? entries.size() - 1 - place : place].first;
  }

  Value dict_;
  bool backwards_;
  size_t at_ = 0;
};

class Characters : public Generator {
 public:
  explicit Characters(Value text) : text_(std::move(text)) {}

 private:
  std::optional<Value> make_next(Context&) override {
    const std::string_view text = text_.as_string();
    if (at_ >= text.size()) return std::nullopt;
    const size_t size = text::decode_utf8(text, at_).size;
    at_ += size;
    return Value(text.substr(at_ - size, size));
  }

  Value text_;
  size_t at_ = 0;
};

class BackwardsCharacters : public Generator {
 public:
  explicit BackwardsCharacters(Value text) : text_(std::move(text)), end_(text_.as_string().size()) {}

 private:
  std::optional<Value> make_next(Context&) override {
    if (end_ == 0) return std::nullopt;
    const std::string_view text = text_.as_string();
    size_t at = end_ - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const size_t size = std::exchange(end_, at) - at;
    // As in Python, where going forwards loses what markup is and going backwards does not.
    return text_.is_markup() ? Value::markup(std::string(text.substr(at, size))) : Value(text.substr(at, size));
  }

  Value text_;
  size_t end_;
};

class Nothing : public Generator {
  std::optional<Value> make_next(Context&) override { return std::nullopt; }
};

}  // namespace

Generator::Generator(int nested) : depth_(nested + 1) {
  if (depth_ > kMaxOperandDepth) fault("more than {} filters or values in one another", kMaxOperandDepth);
}

std::optional<Value> Generator::next(Context& context) {
  const Level level(context.budget);
  context.budget.step();
  return make_next(context);
}

std::string Generator::text(Context&) { return "<generator object>"; }

std::shared_ptr<Generator> iterate(Context& context, const Value& value) {
  context.budget.work(1, sizeof(Characters));
  if (value.is_sequence()) return std::make_shared<SequenceItems>(value, false);
  if (value.is_dict()) return std::make_shared<DictKeys>(value, false);
  if (value.is_string()) return std::make_shared<Characters>(value);
  if (value.is_undefined()) return std::make_shared<Nothing>();
  if (value.is_object())
    if (auto generator = std::dynamic_pointer_cast<Generator>(value.as_object())) return generator;
  fault("'{}' object is not iterable", type_name(value));
}

std::shared_ptr<Generator> iterate_backwards(Context& context, const Value& value) {
  context.budget.work(1, sizeof(Characters));
  if (value.is_sequence()) return std::make_shared<SequenceItems>(value, true);
  if (value.is_dict()) return std::make_shared<DictKeys>(value, true);
  if (value.is_string()) return std::make_shared<BackwardsCharacters>(value);
  if (value.is_undefined()) return std::make_shared<Nothing>();
  fault("'{}' object is not reversible", type_name(value));
}

bool is_iterable(const Value& value) {
  return value.is_sequence() || value.is_dict() || value.is_string() || value.is_undefined() ||
         (value.is_object() && dynamic_cast<const Generator*>(value.as_object().get()));
}

List to_list(Context& context, const Value& value) {
  if (value.is_sequence()) {
    context.make(value.items().size());
    return value.items();
  }
  List out;
  const auto items = iterate(context, value);
  while (auto item = items->next(context)) {
    context.grow();
    out.push_back(std::move(*item));
  }
  return out;
}

}  // namespace shoal::jinja
