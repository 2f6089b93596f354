#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/operators.h"
#include "runtime/text/jinja/value.h"

/// Reading the arguments of functions, methods and filters. All fault where an argument is of a wrong type.
namespace shoal::jinja {

inline const std::string& as_text(const Value& value, std::string_view what) {
  if (!value.is_string()) fault("{} must be str, not {}", what, type_name(value));
  return value.as_string();
}

inline int64_t as_integer(const Value& value, std::string_view what) {
  if (!value.is_integral()) fault("{} must be int, not {}", what, type_name(value));
  return value.as_int();
}

inline const std::string& text_argument(const Args& args, size_t index, std::string_view name) {
  return as_text(args.need(index, name), name);
}

inline int64_t integer_argument(const Args& args, size_t index, std::string_view name) {
  return as_integer(args.need(index, name), name);
}

inline int64_t integer_argument(const Args& args, size_t index, std::string_view name, int64_t fallback) {
  const Value* value = args.find(index, name);
  return value ? as_integer(*value, name) : fallback;
}

inline bool flag_argument(const Args& args, size_t index, std::string_view name, bool fallback) {
  const Value* value = args.find(index, name);
  return value ? truthy(*value) : fallback;
}

}  // namespace shoal::jinja
