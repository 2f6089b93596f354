#include "runtime/text/jinja/macro.h"

#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

/// Has the context keep a scope that a call block's body has caught, if anything still holds the body when the call is
/// over.
class KeepCaught {
 public:
  KeepCaught(Context& context, std::shared_ptr<Macro>& macro) : context_(context), macro_(macro) {}
  ~KeepCaught() {
    if (macro_.use_count() > 1) context_.keep_unbudgeted(context_.scope);
  }
  KeepCaught(const KeepCaught&) = delete;
  KeepCaught& operator=(const KeepCaught&) = delete;

 private:
  Context& context_;
  std::shared_ptr<Macro>& macro_;
};

bool has(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

std::optional<Value> Macro::attribute(Context& context, std::string_view name) {
  if (name == "name") return callable_.name.empty() ? Value(None{}) : Value(callable_.name);
  if (name == "arguments") {
    context.make(callable_.parameters.size());
    return make_tuple(List(callable_.parameters.begin(), callable_.parameters.end()));
  }
  if (name == "catch_kwargs") return callable_.uses_kwargs;
  if (name == "catch_varargs") return callable_.uses_varargs;
  if (name == "caller") return callable_.uses_caller;
  return std::nullopt;
}

/// Sets the macro's parameters in the current scope. The rules are those of jinja2.runtime.Macro.__call__.
void Macro::bind(Context& context, const Args& args) const {
  const auto& parameters = callable_.parameters;
  const size_t given = std::min(args.positional.size(), parameters.size());
  Scope& scope = *context.scope;
  std::vector<bool> used(args.named.size());
  const auto take_named = [&](std::string_view name) -> const Value* {
    for (size_t i = 0; i < args.named.size(); ++i) {
      if (used[i] || args.named[i].first != name) continue;
      used[i] = true;
      return &args.named[i].second;
    }
    return nullptr;
  };
  for (size_t i = 0; i < given; ++i) scope.set(parameters[i], args.positional[i]);
  const size_t first_default = parameters.size() - callable_.defaults.size();
  std::vector<size_t> missing;
  for (size_t i = given; i < parameters.size(); ++i) {
    if (const Value* value = take_named(parameters[i])) {
      scope.set(parameters[i], *value);
    } else {
      missing.push_back(i);
    }
  }
  if (callable_.uses_caller && !has(parameters, "caller")) {
    const Value* caller = take_named("caller");
    scope.set("caller", caller ? *caller : Value::undefined("no caller is defined"));
  }
  if (callable_.uses_kwargs && !has(parameters, "kwargs")) {
    Dict rest;
    context.make_entries(args.named.size());
    for (size_t i = 0; i < args.named.size(); ++i)
      if (!used[i]) rest.set(args.named[i].first, args.named[i].second);
    scope.set("kwargs", make_dict(std::move(rest)));
  } else if (const auto it = std::find(used.begin(), used.end(), false); it != used.end()) {
    fault("macro '{}' takes no argument '{}'", callable_.name,
          args.named[static_cast<size_t>(it - used.begin())].first);
  }
  const List extra(args.positional.begin() + static_cast<std::ptrdiff_t>(given), args.positional.end());
  if (callable_.uses_varargs && !has(parameters, "varargs")) {
    scope.set("varargs", make_tuple(extra));
  } else if (!extra.empty()) {
    fault("macro '{}' takes not more than {} arguments", callable_.name, parameters.size());
  }
  // A default may speak of the parameters before it.
  for (const size_t i : missing) {
    scope.set(parameters[i], i >= first_default
                                 ? callable_.defaults[i - first_default]->evaluate(context)
                                 : Value::undefined(fmt::format("parameter '{}' was not provided", parameters[i])));
  }
}

Value Macro::call(Context& context, const Args& args) {
  const auto keep = shared_from_this();  // the body may drop the name that holds this
  context.budget.work(1, sizeof(Scope));
  context.make(args.positional.size() + args.named.size() + callable_.parameters.size());
  context.budget.work(args.named.size(), callable_.parameters.size());  // each is looked for among the others
  const Within inside(context, std::make_shared<Scope>(scope_));
  bind(context, args);
  std::string out;
  render(callable_.body, context, out);
  return out;
}

std::string Macro::text(Context& context) {
  return callable_.name.empty() ? "<Macro anonymous>"
                                : fmt::format("<Macro {}>", to_repr(context, Value(callable_.name)));
}

Flow MacroStatement::run(Context& context, std::string&) const {
  // The scope holds the macro, and the macro the scope.
  context.keep(context.scope);
  context.scope->set(callable_.name, Value(std::shared_ptr<Object>(std::make_shared<Macro>(callable_, context.scope))));
  return Flow::on;
}

Flow CallBlock::run(Context& context, std::string& out) const {
  auto caller = std::make_shared<Macro>(caller_, context.scope);
  const KeepCaught keep(context, caller);
  const Value called = call_->evaluate_with_caller(context, Value(std::shared_ptr<Object>(caller)));
  const std::string& text = as_text(called, "what a call block prints");
  context.budget.work(text.size());
  out += text;
  return Flow::on;
}

}  // namespace shoal::jinja
