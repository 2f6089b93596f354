#pragma once
#include <memory>
#include <string>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// What namespace(...) gives: the one thing whose attributes a template may change.
class Namespace : public Object, public Cell {
 public:
  explicit Namespace(Dict attributes) : attributes_(std::move(attributes)) {}

  void set(Context& context, const std::string& name, Value value);
  void release() override { attributes_ = {}; }

  std::optional<Value> attribute(Context& context, std::string_view name) override;
  std::string text(Context& context) override;
  std::string_view type_name() const override { return "Namespace"; }

 private:
  Dict attributes_;
};

/// Null where `value` is no namespace.
std::shared_ptr<Namespace> as_namespace(const Value& value);

}  // namespace shoal::jinja
