#pragma once
#include <memory>
#include <string>

#include "runtime/text/jinja/statements.h"

namespace shoal::jinja {

/// A macro, or the body of a call block: what `caller` is.
class Macro : public Object {
 public:
  /// `scope` is where the macro was defined; its body sees the variables there.
  Macro(const Callable& callable, std::shared_ptr<Scope> scope) : callable_(callable), scope_(std::move(scope)) {}

  std::optional<Value> attribute(Context& context, std::string_view name) override;
  bool callable() const override { return true; }
  Value call(Context& context, const Args& args) override;
  std::string text(Context& context) override;
  std::string_view type_name() const override { return "Macro"; }

 private:
  void bind(Context& context, const Args& args) const;

  const Callable& callable_;
  std::shared_ptr<Scope> scope_;
};

}  // namespace shoal::jinja
