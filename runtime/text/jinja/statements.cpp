#include "runtime/text/jinja/statements.h"

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/namespace.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

void print(Context& context, std::string_view text, std::string& out) {
  context.budget.work(text.size());
  out += text;
}

std::shared_ptr<Scope> inner_scope(Context& context) {
  context.budget.work(1, sizeof(Scope));
  return std::make_shared<Scope>(context.scope);
}

}  // namespace

Flow Statement::render(Context& context, std::string& out) const {
  const Level level(context.budget);
  context.budget.step();
  context.line = line_;
  return run(context, out);
}

Flow render(const Body& body, Context& context, std::string& out) {
  for (const auto& statement : body)
    if (const Flow flow = statement->render(context, out); flow != Flow::on) return flow;
  return Flow::on;
}

Flow Data::run(Context& context, std::string& out) const {
  print(context, text_, out);
  return Flow::on;
}

Flow Hide::run(Context& context, std::string&) const {
  for (const std::string& name : names_)
    context.scope->set(name, Value::undefined(fmt::format("'{}' is undefined", name)));
  return Flow::on;
}

Flow Print::run(Context& context, std::string& out) const {
  for (const auto& expression : values_) {
    const Value value = expression->evaluate(context);
    if (value.is_string()) {
      print(context, value.as_string(), out);
    } else {
      print(context, to_text(context, value), out);
    }
  }
  return Flow::on;
}

Flow If::run(Context& context, std::string& out) const {
  for (const auto& [test, body] : branches_)
    if (truthy(test->evaluate(context))) return jinja::render(body, context, out);
  return jinja::render(otherwise_, context, out);
}

Flow Set::run(Context& context, std::string&) const {
  target_.check(context);
  target_.assign(context, value_->evaluate(context));
  return Flow::on;
}

Flow SetBlock::run(Context& context, std::string&) const {
  std::string text;
  Value value;
  {
    const Within inside(context, inner_scope(context));
    // Leaving a loop from inside of the block drops what the block has printed.
    if (const Flow flow = jinja::render(body_, context, text); flow != Flow::on) return flow;
    value = apply(context, filters_, std::move(text));
  }
  target_.check(context);
  target_.assign(context, value);
  return Flow::on;
}

Flow FilterBlock::run(Context& context, std::string& out) const {
  std::string text;
  const Within inside(context, inner_scope(context));
  if (const Flow flow = jinja::render(body_, context, text); flow != Flow::on) return flow;
  const Value filtered = apply(context, filters_, std::move(text));
  print(context, as_text(filtered, "what a filter block prints"), out);
  return Flow::on;
}

Flow With::run(Context& context, std::string& out) const {
  std::vector<Value> values;
  for (const auto& [target, value] : values_) values.push_back(value->evaluate(context));
  const Within inside(context, inner_scope(context));
  for (size_t i = 0; i < values.size(); ++i) values_[i].first.assign(context, values[i]);
  return jinja::render(body_, context, out);
}

Flow Refused::run(Context&, std::string&) const { fault("{}", why_); }

void Target::check(Context& context) const {
  for (const Target& item : items) item.check(context);
  if (attribute.empty()) return;
  if (!as_namespace(context.lookup(name))) fault("cannot assign to an attribute of '{}', which is no namespace", name);
}

void Target::assign(Context& context, const Value& value) const {
  if (!tuple) {
    if (attribute.empty()) {
      context.budget.work(1, sizeof(Value));
      context.scope->set(name, value);
    } else {
      check(context);
      as_namespace(context.lookup(name))->set(context, attribute, value);
    }
    return;
  }
  const List values = to_list(context, value);
  if (values.size() != items.size()) fault("cannot unpack {} values into {} names", values.size(), items.size());
  for (size_t i = 0; i < items.size(); ++i) items[i].assign(context, values[i]);
}

}  // namespace shoal::jinja
