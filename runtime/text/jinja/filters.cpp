#include "runtime/text/jinja/filters.h"

#include <algorithm>
#include <iterator>

#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {
namespace {

/// Jinja's filters that are for web pages or have no use in a prompt. A template that has one is wrong only where it
/// comes to it.
constexpr std::string_view kUnsupported[] = {"pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"};

Value unsupported(Context&, const Value&, const Args&) {
  fault("the filters pprint, random, striptags, urlize, wordwrap and xmlattr are not supported");
}

}  // namespace

Filter find_filter(std::string_view name) {
  for (const auto find :
       {find_text_filter, find_sequence_filter, find_selection_filter, find_order_filter, find_number_filter})
    if (const Filter filter = find(name)) return filter;
  const bool known = std::find(std::begin(kUnsupported), std::end(kUnsupported), name) != std::end(kUnsupported);
  return known ? unsupported : nullptr;
}

}  // namespace shoal::jinja
