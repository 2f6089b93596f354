#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/brace_format.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/print.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// strip, lstrip and rstrip: without the characters at the ends that are among those given, or white space.
Value strip_ends(const Value& self, const Args& args, bool left, bool right) {
  args.allow({"chars"});
  std::string_view text = self.as_string();
  const Value* chars = args.find(0, "chars");
  if (!chars || chars->is_none()) {
    if (left) text = strip_left(text);
    if (right) text = strip_right(text);
    return text;
  }
  const std::string_view set = as_text(*chars, "chars");
  const auto in_set = [set](std::string_view character) { return set.find(character) != set.npos; };
  while (left && !text.empty()) {
    const size_t size = text::decode_utf8(text, 0).size;
    if (!in_set(text.substr(0, size))) break;
    text.remove_prefix(size);
  }
  while (right && !text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (!in_set(text.substr(at))) break;
    text = text.substr(0, at);
  }
  return text;
}

void charge_strip(Context& context, const Value& self, const Args& args) {
  // Each character at the ends is looked up among those given.
  if (const Value* chars = args.find(0, "chars"); chars && chars->is_string())
    context.budget.work(self.as_string().size(), chars->as_string().size());
}

Value strip(Context& context, const Value& self, const Args& args) {
  charge_strip(context, self, args);
  return strip_ends(self, args, true, true);
}
Value lstrip(Context& context, const Value& self, const Args& args) {
  charge_strip(context, self, args);
  return strip_ends(self, args, true, false);
}
Value rstrip(Context& context, const Value& self, const Args& args) {
  charge_strip(context, self, args);
  return strip_ends(self, args, false, true);
}

Value replace(Context& context, const Value& self, const Args& args) {
  args.allow({"old", "new", "count"});
  const std::string_view text = self.as_string();
  const std::string_view old = text_argument(args, 0, "old"), with = text_argument(args, 1, "new");
  const int64_t limit = integer_argument(args, 2, "count", -1);
  auto left = limit < 0 ? SIZE_MAX : static_cast<size_t>(limit);
  Writer out(context);
  size_t at = 0;
  while (left > 0 && at <= text.size()) {
    const size_t found = find_text(text, old, at);
    if (found == text.npos) break;
    out.add(text.substr(at, found - at));
    out.add(with);
    at = found + old.size();
    --left;
    if (!old.empty()) continue;
    // Nothing is found before every character, and at the end.
    if (at == text.size()) return out.take();
    const size_t size = text::decode_utf8(text, at).size;
    out.add(text.substr(at, size));
    at += size;
  }
  if (at < text.size()) out.add(text.substr(at));
  return out.take();
}

Value join(Context& context, const Value& self, const Args& args) {
  args.allow({"iterable"});
  Writer out(context);
  const auto items = iterate(context, args.need(0, "iterable"));
  bool first = true;
  while (const auto item = items->next(context)) {
    if (!std::exchange(first, false)) out.add(self.as_string());
    out.add(as_text(*item, "an item to join"));
  }
  return out.take();
}

/// `text` with `left` and `right` times `fill` around it.
Value padded(Context& context, const Value& self, size_t left, size_t right, std::string_view fill) {
  Writer out(context);
  out.add(fill, left);
  out.add(self.as_string());
  out.add(fill, right);
  return out.take();
}

struct Padding {
  size_t amount = 0;
  int64_t width = 0;
  std::string fill;
};

Padding padding(const Value& self, const Args& args) {
  args.allow({"width", "fillchar"});
  Padding out{.width = integer_argument(args, 0, "width"), .fill = " "};
  if (const Value* fill = args.find(1, "fillchar")) out.fill = as_text(*fill, "the fill character");
  if (length(out.fill) != 1) fault("the fill character must be exactly one character long");
  const auto size = static_cast<int64_t>(length(self.as_string()));
  if (out.width > size) out.amount = static_cast<size_t>(out.width - size);
  return out;
}

Value center(Context& context, const Value& self, const Args& args) {
  const Padding p = padding(self, args);
  // Where it does not come out even, CPython gives the left side more if the width is odd.
  const size_t left = p.amount / 2 + (p.amount & static_cast<size_t>(p.width) & 1);
  return padded(context, self, left, p.amount - left, p.fill);
}
Value ljust(Context& context, const Value& self, const Args& args) {
  const Padding p = padding(self, args);
  return padded(context, self, 0, p.amount, p.fill);
}
Value rjust(Context& context, const Value& self, const Args& args) {
  const Padding p = padding(self, args);
  return padded(context, self, p.amount, 0, p.fill);
}

Value zfill(Context& context, const Value& self, const Args& args) {
  args.allow({"width"});
  const std::string_view text = self.as_string();
  const int64_t width = integer_argument(args, 0, "width");
  const auto size = static_cast<int64_t>(length(text));
  const size_t sign = text.starts_with('+') || text.starts_with('-') ? 1 : 0;
  Writer out(context);
  out.add(text.substr(0, sign));
  if (width > size) out.add("0", static_cast<size_t>(width - size));
  out.add(text.substr(sign));
  return out.take();
}

Value expandtabs(Context& context, const Value& self, const Args& args) {
  args.allow({"tabsize"});
  const auto size = static_cast<size_t>(std::max<int64_t>(integer_argument(args, 0, "tabsize", 8), 0));
  Writer out(context);
  size_t column = 0;
  for (const std::string_view character : characters(self.as_string())) {
    if (character == "\t") {
      const size_t spaces = size == 0 ? 0 : size - column % size;
      out.add(" ", spaces);
      column += spaces;
    } else {
      out.add(character);
      column = character == "\n" || character == "\r" ? 0 : column + 1;
    }
  }
  return out.take();
}

Value removeprefix(Context&, const Value& self, const Args& args) {
  args.allow({"prefix"});
  const std::string_view text = self.as_string(), prefix = text_argument(args, 0, "prefix");
  return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
}
Value removesuffix(Context&, const Value& self, const Args& args) {
  args.allow({"suffix"});
  const std::string_view text = self.as_string(), suffix = text_argument(args, 0, "suffix");
  return text.ends_with(suffix) ? text.substr(0, text.size() - suffix.size()) : text;
}

Value format(Context& context, const Value& self, const Args& args) {
  return brace_format(context, self.as_string(), args);
}

Value format_map(Context& context, const Value& self, const Args& args) {
  args.allow({"mapping"});
  const Value& mapping = args.need(0, "mapping");
  if (!mapping.is_dict()) fault("format_map needs a dict, not {}", type_name(mapping));
  Args named;
  context.make_entries(mapping.as_dict().entries.size());
  for (const auto& [key, value] : mapping.as_dict().entries)
    if (key.is_string()) named.named.emplace_back(key.as_string(), value);
  return brace_format(context, self.as_string(), named);
}

}  // namespace

Method find_layout_method(std::string_view name) {
  static const Table<Method> kMethods = {
      {"strip", strip},
      {"lstrip", lstrip},
      {"rstrip", rstrip},
      {"replace", replace},
      {"join", join},
      {"center", center},
      {"ljust", ljust},
      {"rjust", rjust},
      {"zfill", zfill},
      {"expandtabs", expandtabs},
      {"removeprefix", removeprefix},
      {"removesuffix", removesuffix},
      {"format", format},
      {"format_map", format_map},
  };
  return find_in(kMethods, name);
}

}  // namespace shoal::jinja
