#pragma once
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// Python's text % values: `values` is a tuple, a dict for %(name)s, or one value. Where `format` is markup, what is
/// put into it is escaped.
Value percent_format(Context& context, const Value& format, const Value& values);

}  // namespace shoal::jinja
