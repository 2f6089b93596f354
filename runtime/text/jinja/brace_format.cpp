#include "runtime/text/jinja/brace_format.h"

#include <algorithm>
#include <charconv>

#include "runtime/text/jinja/attributes.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/format_spec.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

std::optional<int64_t> as_index(std::string_view text) {
  int64_t index = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (text.empty() || text[0] == '-' || error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return index;
}

class BraceFormat {
 public:
  BraceFormat(Context& context, const Args& args) : context_(context), args_(args) {}

  /// `depth`: a specification may have fields of its own, these may not.
  std::string run(std::string_view text, int depth) {
    Writer out(context_);
    for (size_t at = 0; at < text.size();) {
      const char c = text[at];
      if (c != '{' && c != '}') {
        const size_t end = std::min(text.find_first_of("{}", at), text.size());
        out.add(text.substr(at, end - at));
        at = end;
      } else if (at + 1 < text.size() && text[at + 1] == c) {
        out.add(text.substr(at, 1));
        at += 2;
      } else if (c == '}') {
        fault("single '}}' in a format");
      } else {
        const size_t end = field_end(text, at + 1);
        out.add(field(text.substr(at + 1, end - at - 1), depth));
        at = end + 1;
      }
    }
    return out.take();
  }

 private:
  /// Where the '}' is of the field that begins at `at`.
  static size_t field_end(std::string_view text, size_t at) {
    int open = 1;
    for (; at < text.size(); ++at) {
      open += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
      if (open == 0) return at;
    }
    fault("expected '}}' before the end of a format");
  }

  std::string field(std::string_view text, int depth) {
    if (depth == 0) fault("the fields of a format are nested too deeply");
    // The name may have '!' and ':' in brackets.
    size_t name_end = 0;
    bool in_brackets = false;
    while (name_end < text.size() && (in_brackets || (text[name_end] != '!' && text[name_end] != ':'))) {
      in_brackets = (in_brackets || text[name_end] == '[') && text[name_end] != ']';
      ++name_end;
    }
    Value value = named(text.substr(0, name_end));
    std::string_view rest = text.substr(name_end);
    if (rest.starts_with('!')) {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) fault("a format's conversion is not complete");
      if (rest[1] == 'r') {
        value = to_repr(context_, value);
      } else if (rest[1] == 's') {
        value = to_text(context_, value);
      } else {
        fault("unknown conversion '{}' in a format", rest[1]);
      }
      rest.remove_prefix(2);
    }
    if (rest.starts_with(':')) rest.remove_prefix(1);
    const std::string spec = run(rest, depth - 1);
    return spec.empty() ? to_text(context_, value) : format_value(context_, value, parse_format_spec(spec));
  }

  Value named(std::string_view name) {
    const size_t first_end = std::min(name.find_first_of(".["), name.size());
    if (first_end == 0 && !name.empty()) fault("a format's field begins with '{}'", name[0]);
    Value value = first(name.substr(0, first_end));
    for (name.remove_prefix(first_end); !name.empty();) {
      if (name[0] == '.') {
        const size_t end = std::min(name.find_first_of(".[", 1), name.size());
        if (end == 1) fault("an attribute's name is empty in a format");
        value = get_attribute(context_, value, name.substr(1, end - 1));
        name.remove_prefix(end);
      } else if (name[0] == '[') {
        const size_t end = name.find(']');
        if (end == name.npos || end == 1) fault("a format has a '[' without ']' or without a key");
        const std::string_view key = name.substr(1, end - 1);
        const auto index = as_index(key);
        value = get_item(context_, value, index ? Value(*index) : Value(key));
        name.remove_prefix(end + 1);
      } else {
        fault("only '.' or '[' may follow ']' in a format");
      }
    }
    return value;
  }

  Value first(std::string_view name) {
    const auto index = as_index(name);
    if (!index && !name.empty()) {
      context_.budget.work(args_.named.size());
      for (const auto& [key, value] : args_.named)
        if (key == name) return value;
      fault("the format's field '{}' is missing", name);
    }
    if (numbered_ && *numbered_ != index.has_value()) fault("a format cannot mix numbered fields with unnumbered ones");
    numbered_ = index.has_value();
    const auto place = static_cast<size_t>(index ? *index : next_++);
    if (place >= args_.positional.size()) fault("there is no argument {} for the format", place);
    return args_.positional[place];
  }

  Context& context_;
  const Args& args_;
  std::optional<bool> numbered_;
  int64_t next_ = 0;
};

}  // namespace

Value brace_format(Context& context, std::string_view format, const Args& args) {
  return BraceFormat(context, args).run(format, 2);
}

}  // namespace shoal::jinja
