#pragma once
#include <string_view>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// `value is name(args)`.
using Test = bool (*)(Context& context, const Value& value, const Args& args);

/// Null where there is no such test.
Test find_test(std::string_view name);

}  // namespace shoal::jinja
