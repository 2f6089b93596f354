#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/json_text.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/percent_format.h"
#include "runtime/text/jinja/print.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// Text as it is, anything else printed.
Value as_printed(Context& context, const Value& value) {
  return value.is_string() ? value : Value(to_text(context, value));
}

Value string(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return as_printed(context, value);
}

Value upper(Context& context, const Value& value, const Args& args) {
  return call_method(context, as_printed(context, value), "upper", args);
}
Value lower(Context& context, const Value& value, const Args& args) {
  return call_method(context, as_printed(context, value), "lower", args);
}
Value capitalized(Context& context, const Value& value, const Args& args) {
  return call_method(context, as_printed(context, value), "capitalize", args);
}

Value trim(Context& context, const Value& value, const Args& args) {
  args.allow({"chars"});
  return call_method(context, as_printed(context, value), "strip", {{args.get(0, "chars", None{})}, {}});
}

Value center(Context& context, const Value& value, const Args& args) {
  args.allow({"width"});
  return call_method(context, as_printed(context, value), "center", {{args.get(0, "width", 80)}, {}});
}

Value replace(Context& context, const Value& value, const Args& args) {
  args.allow({"old", "new", "count"});
  const Value old(to_text(context, args.need(0, "old"))), with(to_text(context, args.need(1, "new")));
  const Value count = args.get(2, "count", None{});
  return call_method(context, Value(to_text(context, value)), "replace",
                     {{old, with, count.is_none() ? Value(-1) : count}, {}});
}

/// Jinja's own: a word begins after any of - ( { [ < and white space, and only there.
Value title(Context& context, const Value& value, const Args& args) {
  args.allow({});
  const Value printed = as_printed(context, value);
  const std::string_view text = printed.as_string();
  Writer out(context);
  size_t begin = 0;
  bool between = false;
  const auto add_run = [&](size_t end) {
    const std::string_view run = text.substr(begin, end - begin);
    begin = end;
    if (run.empty()) return;
    const size_t first = text::decode_utf8(run, 0).size;
    out.add(to_upper(run.substr(0, first)));
    out.add(to_lower(run.substr(first)));
  };
  for (size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    const bool separates =
        is_space(c.value) || c.value == '-' || c.value == '(' || c.value == '{' || c.value == '[' || c.value == '<';
    if (separates != between) add_run(at);
    between = separates;
    at += c.size;
  }
  add_run(text.size());
  return out.take();
}

Value safe(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return Value::markup(to_text(context, value));
}

Value escape(Context& context, const Value& value, const Args& args) {
  args.allow({});
  if (value.is_markup()) return value;
  return Value::markup(escape_html(context, to_text(context, value)));
}

Value force_escape(Context& context, const Value& value, const Args& args) {
  args.allow({});
  return Value::markup(escape_html(context, to_text(context, value)));
}

Value indent(Context& context, const Value& value, const Args& args) {
  args.allow({"width", "first", "blank"});
  if (value.is_undefined()) fault("{}", value.why_undefined());
  const std::string text = as_text(value, "what is indented") + "\n";
  const Value width = args.get(0, "width", 4);
  const bool first = flag_argument(args, 1, "first", false), blank = flag_argument(args, 2, "blank", false);
  std::string indention;
  if (width.is_string()) {
    indention = width.as_string();
  } else {
    const auto count = static_cast<size_t>(std::max<int64_t>(as_integer(width, "width"), 0));
    context.budget.work(count);
    indention.assign(count, ' ');
  }
  context.budget.work(text.size(), sizeof(std::string_view));
  Writer out(context);
  bool first_line = true;
  for (const std::string_view line : split_lines(text, false)) {
    if (!first_line) out.add("\n");
    if (first_line ? first : blank || !line.empty()) out.add(indention);
    out.add(line);
    first_line = false;
  }
  return value.is_markup() ? Value::markup(out.take()) : Value(out.take());
}

Value truncate(Context& context, const Value& value, const Args& args) {
  args.allow({"length", "killwords", "end", "leeway"});
  const int64_t limit = integer_argument(args, 0, "length", 255);
  const Value end = args.get(2, "end", "..."), leeway = args.get(3, "leeway", None{});
  const auto end_size = static_cast<int64_t>(length(as_text(end, "end")));
  const int64_t slack = leeway.is_none() ? 5 : as_integer(leeway, "leeway");
  if (limit < end_size || slack < 0)
    fault("truncate needs a length of at least that of its end, and no negative leeway");
  const Value size = find_filter("length")(context, value, {});
  if (size.as_int() <= std::min<int64_t>(limit, INT32_MAX) + std::min<int64_t>(slack, INT32_MAX)) return value;
  const std::string_view text = as_text(value, "what is truncated");
  std::string_view kept = text.substr(0, byte_offset(text, static_cast<size_t>(limit - end_size)));
  if (!flag_argument(args, 1, "killwords", false))
    if (const size_t space = kept.rfind(' '); space != kept.npos) kept = kept.substr(0, space);
  Writer out(context);
  out.add(kept);
  out.add(end.as_string());
  return out.take();
}

Value wordcount(Context& context, const Value& value, const Args& args) {
  args.allow({});
  const Value printed = as_printed(context, value);
  int64_t words = 0;
  bool in_word = false;
  for_each_character(printed.as_string(), [&](char32_t c) {
    words += is_word(c) && !in_word;
    in_word = is_word(c);
  });
  return words;
}

Value format(Context& context, const Value& value, const Args& args) {
  if (!args.positional.empty() && !args.named.empty())
    fault("format takes either positional or keyword arguments, not both");
  const Value printed = as_printed(context, value);
  if (args.named.empty()) return percent_format(context, printed, make_tuple(args.positional));
  Dict dict;
  for (const auto& [key, item] : args.named) dict.set(key, item);
  return percent_format(context, printed, make_dict(std::move(dict)));
}

/// The one that transformers puts in the place of Jinja's: json.dumps with nothing escaped for HTML.
Value tojson(Context& context, const Value& value, const Args& args) {
  args.allow({"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = flag_argument(args, 0, "ensure_ascii", false);
  style.sort_keys = flag_argument(args, 3, "sort_keys", false);
  const Value indent_by = args.get(1, "indent", None{}), separators = args.get(2, "separators", None{});
  if (indent_by.is_string()) {
    style.indent = indent_by.as_string();
  } else if (!indent_by.is_none()) {
    const auto width = static_cast<size_t>(std::max<int64_t>(as_integer(indent_by, "indent"), 0));
    context.budget.work(width);
    style.indent = std::string(width, ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (!separators.is_none()) {
    const List pair = to_list(context, separators);
    if (pair.size() != 2) fault("separators must be two");
    style.item_separator = as_text(pair[0], "a separator");
    style.key_separator = as_text(pair[1], "a separator");
  }
  return to_json(context, value, style);
}

bool stays_in_url(unsigned char c) {
  return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_' || c == '.' || c == '-' || c == '~';
}

std::string quoted_for_url(Context& context, const Value& value, bool in_query) {
  Writer out(context);
  for (const char c : to_text(context, value)) {
    const auto byte = static_cast<unsigned char>(c);
    if (stays_in_url(byte) || (c == '/' && !in_query)) {
      out.add(std::string_view(&c, 1));
    } else {
      out.add(in_query && c == ' ' ? "+" : fmt::format("%{:02X}", byte));
    }
  }
  return out.take();
}

Value urlencode(Context& context, const Value& value, const Args& args) {
  args.allow({});
  if (value.is_string() || !is_iterable(value)) return quoted_for_url(context, value, false);
  const Value pairs = value.is_dict() ? call_method(context, value, "items", {}) : value;
  Writer out(context);
  for (const Value& pair : to_list(context, pairs)) {
    const List parts = to_list(context, pair);
    if (parts.size() != 2) fault("urlencode needs pairs");
    if (!out.empty()) out.add("&");
    out.add(quoted_for_url(context, parts[0], true) + "=" + quoted_for_url(context, parts[1], true));
  }
  return out.take();
}

}  // namespace

Filter find_text_filter(std::string_view name) {
  static const Table<Filter> kFilters = {
      {"capitalize", capitalized},
      {"center", center},
      {"e", escape},
      {"escape", escape},
      {"forceescape", force_escape},
      {"format", format},
      {"indent", indent},
      {"lower", lower},
      {"replace", replace},
      {"safe", safe},
      {"string", string},
      {"title", title},
      {"tojson", tojson},
      {"trim", trim},
      {"truncate", truncate},
      {"upper", upper},
      {"urlencode", urlencode},
      {"wordcount", wordcount},
  };
  return find_in(kFilters, name);
}

}  // namespace shoal::jinja
