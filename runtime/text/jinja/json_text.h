#pragma once
#include <optional>
#include <string>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // what each level is indented by; none: all on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};

/// Python's json.dumps. Faults where `value` has no JSON form.
std::string to_json(Context& context, const Value& value, const JsonStyle& style);

}  // namespace shoal::jinja
