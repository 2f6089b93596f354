#include "runtime/text/jinja/loop.h"

#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/operators.h"

namespace shoal::jinja {
namespace {

/// Gives what has been taken from a generator already.
class TakenItems : public Generator {
 public:
  explicit TakenItems(List items) : items_(std::move(items)) {}

 private:
  std::optional<Value> make_next(Context&) override {
    return at_ < items_.size() ? std::optional(items_[at_++]) : std::nullopt;
  }

  List items_;
  size_t at_ = 0;
};

}  // namespace

Loop::Loop(const For& statement, std::shared_ptr<Generator> items, std::optional<size_t> known_length, int depth,
           std::shared_ptr<Scope> scope)
    : statement_(&statement), items_(std::move(items)), scope_(std::move(scope)), depth_(depth) {
  if (known_length) length_ = static_cast<int64_t>(*known_length);
}

bool Loop::advance(Context& context) {
  std::optional<Value> next = after_ ? std::move(*after_) : items_->next(context);
  after_.reset();
  if (!next) return false;
  ++index0_;
  before_ = std::exchange(current_, std::move(*next));
  return true;
}

void Loop::finish() {
  // What is dropped may hold the last reference to this.
  const auto keep = shared_from_this();
  items_.reset();
  scope_.reset();
  before_ = current_ = Value();
  after_.emplace(std::nullopt);
  changed_.reset();
}

const std::optional<Value>& Loop::peek(Context& context) {
  if (!after_) after_ = items_->next(context);
  return *after_;
}

int64_t Loop::length(Context& context) {
  if (length_) return *length_;
  if (!items_) fault("the length of a loop that is over is not known");
  List rest;
  while (auto item = items_->next(context)) {
    context.grow();
    rest.push_back(std::move(*item));
  }
  length_ = static_cast<int64_t>(rest.size()) + index0_ + 1 + (after_ && *after_ ? 1 : 0);
  items_ = std::make_shared<TakenItems>(std::move(rest));
  return *length_;
}

std::optional<Value> Loop::attribute(Context& context, std::string_view name) {
  if (name == "index0") return index0_;
  if (name == "index") return index0_ + 1;
  if (name == "revindex0") return length(context) - index0_ - 1;
  if (name == "revindex") return length(context) - index0_;
  if (name == "first") return index0_ == 0;
  if (name == "last") return !peek(context).has_value();
  if (name == "length") return length(context);
  if (name == "depth") return depth_ + 1;
  if (name == "depth0") return depth_;
  if (name == "previtem") return index0_ == 0 ? Value::undefined("there is no previous item") : before_;
  if (name == "nextitem") return peek(context) ? *peek(context) : Value::undefined("there is no next item");
  return std::nullopt;
}

Value Loop::call_method(Context& context, std::string_view name, const Args& args) {
  if (!args.named.empty()) fault("unexpected argument '{}'", args.named[0].first);
  if (name == "cycle") {
    if (args.positional.empty()) fault("no items for cycling given");
    return args.positional[static_cast<size_t>(index0_) % args.positional.size()];
  }
  const Value now = make_tuple(args.positional);
  if (changed_ && equal(context, now, make_tuple(*changed_))) return false;
  changed_ = args.positional;
  return true;
}

Value Loop::call(Context& context, const Args& args) {
  args.allow({"iterable"});
  if (!scope_ || !statement_->recursive()) fault("only a loop marked 'recursive' can be called, while it runs");
  std::string out;
  const Within around(context, scope_);
  statement_->run_over(context, args.need(0, "iterable"), depth_ + 1, out);
  return out;
}

std::string Loop::text(Context& context) { return fmt::format("<LoopContext {}/{}>", index0_ + 1, length(context)); }

}  // namespace shoal::jinja
