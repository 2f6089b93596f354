#include "runtime/text/jinja/attribute_path.h"

#include <algorithm>
#include <charconv>

#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/characters.h"

namespace shoal::jinja {
namespace {

Value part(std::string_view text) {
  const bool digits =
      !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  int64_t index = 0;
  if (digits && std::from_chars(text.data(), text.data() + text.size(), index).ec == std::errc()) return index;
  return text;
}

}  // namespace

AttributePath::AttributePath(const Value& attribute) {
  if (attribute.is_none()) return;
  if (!attribute.is_string()) {
    parts_.push_back(attribute);
    return;
  }
  std::string_view rest = attribute.as_string();
  for (size_t dot; (dot = rest.find('.')) != rest.npos; rest.remove_prefix(dot + 1))
    parts_.push_back(part(rest.substr(0, dot)));
  parts_.push_back(part(rest));
}

Value AttributePath::of(Context& context, Value item, const Value* fallback) const {
  for (const Value& key : parts_) {
    context.budget.step();
    item = get_item(context, item, key);
    if (fallback && item.is_undefined()) item = *fallback;
  }
  return item;
}

Value ignore_case(Context& context, const Value& value) {
  if (!value.is_string()) return value;
  context.budget.work(value.as_string().size(), 4);
  return to_lower(value.as_string());
}

}  // namespace shoal::jinja
