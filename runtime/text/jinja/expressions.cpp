#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/nodes.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {

Value Expression::evaluate(Context& context) const {
  const Level level(context.budget);
  context.budget.step();
  context.line = line_;
  return compute(context);
}

Value Items::compute(Context& context) const {
  context.make(items_.size());
  List items;
  items.reserve(items_.size());
  for (const auto& item : items_) items.push_back(item->evaluate(context));
  return make_sequence(kind_, std::move(items));
}

Value Entries::compute(Context& context) const {
  Dict dict;
  for (const auto& [key, value] : entries_) {
    context.make_entries(1);
    Value evaluated = key->evaluate(context);
    context.use_key(evaluated);
    dict.set(std::move(evaluated), value->evaluate(context));
  }
  return make_dict(std::move(dict));
}

Value Arithmetic::compute(Context& context) const {
  Value value = first_->evaluate(context);
  for (const auto& [op, operand] : rest_) value = arithmetic(context, op, value, operand->evaluate(context));
  return value;
}

Value Joined::compute(Context& context) const {
  Writer out(context);
  for (const auto& part : parts_) out.add(to_text(context, part->evaluate(context)));
  return out.take();
}

Value Comparison::compute(Context& context) const {
  Value left = first_->evaluate(context);
  for (const auto& [op, operand] : rest_) {
    Value right = operand->evaluate(context);
    if (!compare(context, op, left, right)) return false;
    left = std::move(right);
  }
  return true;
}

Value Logic::compute(Context& context) const {
  Value value;
  for (const auto& part : parts_) {
    value = part->evaluate(context);
    if (truthy(value) != conjunction_) break;
  }
  return value;
}

Value Conditional::compute(Context& context) const {
  if (truthy(test_->evaluate(context))) return value_->evaluate(context);
  if (otherwise_) return otherwise_->evaluate(context);
  return Value::undefined("the inline if-expression was false and has no else");
}

Args CallArguments::evaluate(Context& context) const {
  Args args;
  context.make(positional.size() + named.size());
  for (const auto& value : positional) args.positional.push_back(value->evaluate(context));
  for (const auto& [name, value] : named) args.named.emplace_back(name, value->evaluate(context));
  if (more_positional) {
    const List more = to_list(context, more_positional->evaluate(context));
    args.positional.insert(args.positional.end(), more.begin(), more.end());
  }
  if (!more_named) return args;
  const Value more = more_named->evaluate(context);
  if (!more.is_dict()) fault("the argument after ** must be a mapping, not {}", type_name(more));
  for (const auto& [key, value] : more.as_dict().entries) {
    if (!key.is_string()) fault("the keys of an argument after ** must be strings");
    context.make_entries(1);
    context.make(named.size());
    context.read(key);
    // Against those before the ** only: a dict's keys differ from each other.
    for (size_t i = 0; i < named.size(); ++i)
      if (args.named[i].first == key.as_string()) fault("argument '{}' is given twice", key.as_string());
    args.named.emplace_back(key.as_string(), value);
  }
  return args;
}

Value AttributeLink::apply(Context& context, const Value& on) const { return get_attribute(context, on, name_); }

Value SubscriptLink::apply(Context& context, const Value& on) const {
  return get_item(context, on, key_->evaluate(context));
}

Value SliceLink::apply(Context& context, const Value& on) const {
  const auto part = [&](const ExpressionPtr& e) { return e ? e->evaluate(context) : Value(None{}); };
  const Value start = part(start_), stop = part(stop_), step = part(step_);
  return get_slice(context, on, start, stop, step);
}

Value CallLink::apply(Context& context, const Value& on) const {
  return call(context, on, arguments_.evaluate(context));
}

Value CallLink::apply(Context& context, const Value& on, const Value& caller) const {
  Args args = arguments_.evaluate(context);
  for (const auto& [name, value] : args.named)
    if (name == "caller") fault("argument 'caller' is given twice");
  args.named.emplace_back("caller", caller);
  return call(context, on, args);
}

Value CallLink::call(Context& context, const Value& on, const Args& args) const {
  return method_ ? call_method(context, on, *method_, args) : jinja::call(context, on, args);
}

Value FilterLink::apply(Context& context, const Value& on) const {
  if (!filter_) fault("no filter named '{}'", name_);
  const Args args = arguments_.evaluate(context);
  context.read(on);
  return filter_(context, on, args);
}

Value TestLink::apply(Context& context, const Value& on) const {
  if (!test_) fault("no test named '{}'", name_);
  const Args args = arguments_.evaluate(context);
  return test_(context, on, args) != negated_;
}

Value apply(Context& context, const Links& links, Value value) {
  for (const auto& link : links) {
    context.budget.step();
    value = link->apply(context, value);
  }
  return value;
}

const CallLink* Chain::last_call() const { return dynamic_cast<const CallLink*>(links_.back().get()); }

Value Chain::compute(Context& context) const { return apply(context, links_, first_->evaluate(context)); }

Value Chain::evaluate_with_caller(Context& context, const Value& caller) const {
  Value value = first_->evaluate(context);
  for (size_t i = 0; i + 1 < links_.size(); ++i) value = links_[i]->apply(context, value);
  return last_call()->apply(context, value, caller);
}

}  // namespace shoal::jinja
