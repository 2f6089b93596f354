#include "runtime/text/jinja/methods.h"

#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

/// From which argument on a method of markup escapes the text that it is given, as markupsafe's have it.
size_t first_escaped(std::string_view name) {
  if (name == "format" || name == "format_map") return 0;
  if (name == "replace" || name == "center" || name == "ljust" || name == "rjust") return 1;
  return SIZE_MAX;
}

/// Methods that take arguments by name; Python's others do not.
bool takes_names(std::string_view name) {
  return name == "split" || name == "rsplit" || name == "splitlines" || name == "expandtabs" || name == "format";
}

Value escaped(Context& context, const Value& value) {
  return value.is_string() && !value.is_markup() ? Value::markup(escape_html(context, value.as_string())) : value;
}

/// The items that markup joins: all as text that is escaped.
Value escaped_items(Context& context, const Value& value) {
  List items;
  for (const Value& item : to_list(context, value))
    items.push_back(item.is_markup() ? item : Value(escape_html(context, to_text(context, item))));
  return make_list(std::move(items));
}

Value marked(Context& context, const Value& value) {
  if (value.is_string()) {
    context.read(value);
    return Value::markup(value.as_string());
  }
  if (!value.is_sequence()) return value;
  context.make(value.items().size());
  List items;
  for (const Value& item : value.items()) items.push_back(marked(context, item));
  return make_sequence(value.as_sequence().kind, std::move(items));
}

}  // namespace

Method find_method(const Value& self, std::string_view name) {
  if (!self.is_string()) return find_container_method(self, name);
  for (const auto find : {find_layout_method, find_split_method, find_search_method, find_case_method})
    if (const Method method = find(name)) return method;
  return nullptr;
}

Value call_built_in(Context& context, Method method, std::string_view name, const Value& self, const Args& args) {
  if (!args.named.empty() && !takes_names(name)) fault("{} takes no keyword arguments", name);
  context.read(self);
  for (const Value& value : args.positional) context.read(value);
  for (const auto& [key, value] : args.named) context.read(value);
  if (!self.is_markup()) return method(context, self, args);
  Args safe = args;
  if (name == "join" && args.positional.size() == 1) safe.positional[0] = escaped_items(context, args.positional[0]);
  const size_t first = first_escaped(name);
  for (size_t i = first; i < safe.positional.size(); ++i) safe.positional[i] = escaped(context, safe.positional[i]);
  if (first == 0)
    for (auto& [key, value] : safe.named) value = escaped(context, value);
  return marked(context, method(context, self, safe));
}

std::string escape_html(Context& context, std::string_view text) {
  Writer out(context);
  for (const char& c : text) {
    switch (c) {
      case '&':
        out.add("&amp;");
        break;
      case '<':
        out.add("&lt;");
        break;
      case '>':
        out.add("&gt;");
        break;
      case '\'':
        out.add("&#39;");
        break;
      case '"':
        out.add("&#34;");
        break;
      default:
        out.add(std::string_view(&c, 1));
    }
  }
  return out.take();
}

}  // namespace shoal::jinja
