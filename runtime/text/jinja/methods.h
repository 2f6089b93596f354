#pragma once
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// A method of a built-in type.
using Method = Value (*)(Context& context, const Value& self, const Args& args);

/// The method `name` of the type of `self`; null where there is none. Those that would change `self` do not exist, as
/// in the sandbox of transformers.
Method find_method(const Value& self, std::string_view name);

/// Text's, by subject.
Method find_case_method(std::string_view name);
Method find_layout_method(std::string_view name);
Method find_search_method(std::string_view name);
Method find_split_method(std::string_view name);
/// Those of lists, tuples, ranges and dicts.
Method find_container_method(const Value& self, std::string_view name);

/// Calls a method that find_method has found. What comes out of text that is HTML is so too, and what goes in is
/// escaped.
Value call_built_in(Context& context, Method method, std::string_view name, const Value& self, const Args& args);

/// `text` with &, <, >, ' and " written as HTML has them.
std::string escape_html(Context& context, std::string_view text);

}  // namespace shoal::jinja
