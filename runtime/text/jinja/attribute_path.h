#pragma once
#include <optional>
#include <vector>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// The attribute that a filter goes by: "function.name", "0.role", 1, or none for the item itself.
class AttributePath {
 public:
  explicit AttributePath(const Value& attribute);

  /// `fallback`, where there is one, stands in for what is undefined on the way.
  Value of(Context& context, Value item, const Value* fallback = nullptr) const;

 private:
  std::vector<Value> parts_;
};

/// Text in lower case, so that sorting and the like go without regard to case.
Value ignore_case(Context& context, const Value& value);

}  // namespace shoal::jinja
