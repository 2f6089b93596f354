#pragma once
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// Python's text.format(args): {}, {0}, {name}, {a.b[0]}, {!r}, {:>8.2f}.
Value brace_format(Context& context, std::string_view format, const Args& args);

}  // namespace shoal::jinja
