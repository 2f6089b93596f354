#include "runtime/text/jinja/namespace.h"

#include "runtime/text/jinja/print.h"

namespace shoal::jinja {

void Namespace::set(Context& context, const std::string& name, Value value) {
  context.make_entries(1);
  context.budget.work(name.size());
  attributes_.set(name, std::move(value));
}

std::optional<Value> Namespace::attribute(Context&, std::string_view name) {
  const Value* value = attributes_.find(name);
  return value ? std::optional(*value) : std::nullopt;
}

std::string Namespace::text(Context& context) { return "<Namespace " + to_repr(context, make_dict(attributes_)) + ">"; }

std::shared_ptr<Namespace> as_namespace(const Value& value) {
  return value.is_object() ? std::dynamic_pointer_cast<Namespace>(value.as_object()) : nullptr;
}

}  // namespace shoal::jinja
