#pragma once
#include <string_view>

#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// `value|name(args)`.
using Filter = Value (*)(Context& context, const Value& value, const Args& args);

/// Null where there is no such filter.
Filter find_filter(std::string_view name);

/// The filters by subject.
Filter find_text_filter(std::string_view name);
Filter find_number_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);
Filter find_selection_filter(std::string_view name);
Filter find_order_filter(std::string_view name);

}  // namespace shoal::jinja
