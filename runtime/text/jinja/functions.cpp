#include "runtime/text/jinja/functions.h"

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/clock.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/namespace.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

class Function : public Object {
 public:
  using Body = Value (*)(Context& context, const Args& args);
  Function(std::string name, Body body) : name_(std::move(name)), body_(body) {}

  bool callable() const override { return true; }
  Value call(Context& context, const Args& args) override { return body_(context, args); }
  std::string text(Context&) override { return fmt::format("<function {}>", name_); }
  std::string_view type_name() const override { return "function"; }

 private:
  std::string name_;
  Body body_;
};

Value range(Context& context, const Args& args) {
  constexpr uint64_t kMaxRange = 100'000;  // as in Jinja's sandbox
  if (!args.named.empty()) fault("range takes no keyword arguments");
  const size_t count = args.positional.size();
  if (count < 1 || count > 3) fault("range takes 1 to 3 arguments, not {}", count);
  for (const Value& value : args.positional) {
    if (value.is_undefined()) fault("{}", value.why_undefined());
    as_integer(value, "an argument of range");
  }
  const int64_t start = count > 1 ? args.positional[0].as_int() : 0, stop = args.positional[count > 1 ? 1 : 0].as_int();
  const int64_t step = count > 2 ? args.positional[2].as_int() : 1;
  if (step == 0) fault("the step of a range cannot be zero");
  uint64_t size = 0;
  if (step > 0 ? start < stop : start > stop) {
    const uint64_t distance = step > 0 ? static_cast<uint64_t>(stop) - static_cast<uint64_t>(start)
                                       : static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
    const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : 0 - static_cast<uint64_t>(step);
    size = (distance - 1) / stride + 1;
  }
  if (size > kMaxRange) fault("a range has more than {} items", kMaxRange);
  context.make(size);
  List items;
  items.reserve(size);
  for (uint64_t i = 0; i < size; ++i)
    items.emplace_back(static_cast<int64_t>(static_cast<uint64_t>(start) + i * static_cast<uint64_t>(step)));
  return make_range(std::move(items), start, stop, step);
}

/// Python's dict(pairs or dict, **named).
Dict dict_of(Context& context, const Args& args) {
  Dict out;
  if (args.positional.size() > 1) fault("at most one positional argument is expected");
  if (!args.positional.empty()) {
    const Value& from = args.positional[0];
    if (from.is_undefined()) fault("{}", from.why_undefined());
    if (from.is_dict()) {
      context.make_entries(from.as_dict().entries.size());
      out = from.as_dict();
    } else {
      for (const Value& pair : to_list(context, from)) {
        const List parts = to_list(context, pair);
        if (parts.size() != 2) fault("a dict is made of pairs");
        context.make_entries(1);
        context.use_key(parts[0]);
        out.set(parts[0], parts[1]);
      }
    }
  }
  context.make_entries(args.named.size());
  for (const auto& [name, value] : args.named) out.set(name, value);
  return out;
}

Value dict(Context& context, const Args& args) { return make_dict(dict_of(context, args)); }

Value name_space(Context& context, const Args& args) {
  const auto made = std::make_shared<Namespace>(dict_of(context, args));
  context.keep(made);
  return Value(std::shared_ptr<Object>(made));
}

class Cycler : public Object {
 public:
  explicit Cycler(Value items) : items_(std::move(items)) {}

  std::optional<Value> attribute(Context&, std::string_view name) override {
    if (name == "current") return items_.items()[at_];
    if (name == "items") return items_;
    if (name == "pos") return static_cast<int64_t>(at_);
    return std::nullopt;
  }
  bool has_method(std::string_view name) const override { return name == "next" || name == "reset"; }
  Value call_method(Context&, std::string_view name, const Args& args) override {
    args.allow({});
    const size_t now = std::exchange(at_, name == "next" ? (at_ + 1) % items_.items().size() : 0);
    return name == "next" ? items_.items()[now] : Value(None{});
  }
  std::string text(Context&) override { return "<Cycler>"; }
  std::string_view type_name() const override { return "Cycler"; }
  int depth() const override { return items_.depth() + 1; }

 private:
  Value items_;
  size_t at_ = 0;
};

Value cycler(Context& context, const Args& args) {
  if (!args.named.empty() || args.positional.empty()) fault("cycler takes one item or more");
  context.make(args.positional.size());
  return Value(std::shared_ptr<Object>(std::make_shared<Cycler>(make_tuple(args.positional))));
}

class Joiner : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}

  bool callable() const override { return true; }
  Value call(Context&, const Args& args) override {
    args.allow({});
    return std::exchange(used_, true) ? separator_ : Value("");
  }
  std::string text(Context&) override { return "<Joiner>"; }
  std::string_view type_name() const override { return "Joiner"; }
  int depth() const override { return separator_.depth() + 1; }

 private:
  Value separator_;
  bool used_ = false;
};

Value joiner(Context& context, const Args& args) {
  args.allow({"sep"});
  context.grow();
  return Value(std::shared_ptr<Object>(std::make_shared<Joiner>(args.get(0, "sep", ", "))));
}

Value raise_exception(Context& context, const Args& args) {
  args.allow({"message"});
  throw Raised(to_text(context, args.need(0, "message")));
}

Value strftime_now(Context& context, const Args& args) {
  args.allow({"format"});
  const std::string& format = text_argument(args, 0, "format");
  context.budget.work(format.size(), 64);
  return formatted_now(format);
}

}  // namespace

void add_functions(Scope& scope) {
  static constexpr std::pair<const char*, Function::Body> kFunctions[] = {
      {"range", range},
      {"dict", dict},
      {"namespace", name_space},
      {"cycler", cycler},
      {"joiner", joiner},
      {"raise_exception", raise_exception},
      {"strftime_now", strftime_now},
  };
  for (const auto& [name, body] : kFunctions)
    scope.set(name, Value(std::shared_ptr<Object>(std::make_shared<Function>(name, body))));
}

}  // namespace shoal::jinja
