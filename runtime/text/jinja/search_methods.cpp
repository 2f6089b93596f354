#include <algorithm>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// A part of a text, from one code point to another.
struct Part {
  std::string_view text;
  int64_t start = 0;  // in code points of the whole
  bool valid = true;  // false: it begins behind the end, so that not even "" is in it
};

Part part_of(const Value& self, const Args& args) {
  const std::string_view text = self.as_string();
  const Value *from = args.find(1, "start"), *to = args.find(2, "end");
  if ((!from || from->is_none()) && (!to || to->is_none())) return {text};
  const auto size = static_cast<int64_t>(length(text));
  const auto place = [&](const Value* given, int64_t fallback) {
    if (!given || given->is_none()) return fallback;
    const int64_t index = as_integer(*given, "an index");
    return std::max<int64_t>(index < 0 ? index + size : index, 0);
  };
  const int64_t start = place(from, 0), end = std::min(place(to, size), size);
  if (start > end) return {{}, start, false};
  const size_t begin = byte_offset(text, static_cast<size_t>(start));
  const std::string_view rest = text.substr(begin);
  return {rest.substr(0, byte_offset(rest, static_cast<size_t>(end - start))), start};
}

/// Where the text of the first argument is, in code points; -1 where it is not.
int64_t position(Context& context, const Value& self, const Args& args, bool last) {
  args.allow({"sub", "start", "end"});
  const std::string_view wanted = text_argument(args, 0, "sub");
  const Part part = part_of(self, args);
  if (!part.valid) return -1;
  if (last) context.budget.work(part.text.size(), wanted.size());  // rfind may look at all of `wanted` everywhere
  const size_t found = last ? part.text.rfind(wanted) : find_text(part.text, wanted);
  if (found == part.text.npos) return -1;
  return part.start + static_cast<int64_t>(length(part.text.substr(0, found)));
}

Value find(Context& context, const Value& self, const Args& args) { return position(context, self, args, false); }
Value rfind(Context& context, const Value& self, const Args& args) { return position(context, self, args, true); }

Value index(Context& context, const Value& self, const Args& args) {
  const int64_t found = position(context, self, args, false);
  if (found < 0) fault("substring not found");
  return found;
}
Value rindex(Context& context, const Value& self, const Args& args) {
  const int64_t found = position(context, self, args, true);
  if (found < 0) fault("substring not found");
  return found;
}

Value occurrences(Context&, const Value& self, const Args& args) {
  args.allow({"sub", "start", "end"});
  const std::string_view wanted = text_argument(args, 0, "sub");
  const Part part = part_of(self, args);
  if (!part.valid) return 0;
  if (wanted.empty()) return static_cast<int64_t>(length(part.text)) + 1;
  int64_t n = 0;
  for (size_t at = 0; (at = find_text(part.text, wanted, at)) != part.text.npos; at += wanted.size()) ++n;
  return n;
}

Value starts_or_ends(Context& context, const Value& self, const Args& args, bool at_end) {
  args.allow({at_end ? "suffix" : "prefix", "start", "end"});
  const Part part = part_of(self, args);
  const auto fits = [&](const std::string& wanted) {
    return part.valid && (at_end ? part.text.ends_with(wanted) : part.text.starts_with(wanted));
  };
  const Value& wanted = args.need(0, at_end ? "suffix" : "prefix");
  if (!wanted.is_sequence(SequenceKind::tuple)) return fits(as_text(wanted, "what a text may start or end with"));
  bool any = false;
  for (const Value& item : wanted.items()) {
    context.read(item);
    any = any || fits(as_text(item, "what a text may start or end with"));
  }
  return any;
}

Value startswith(Context& context, const Value& self, const Args& args) {
  return starts_or_ends(context, self, args, false);
}
Value endswith(Context& context, const Value& self, const Args& args) {
  return starts_or_ends(context, self, args, true);
}

}  // namespace

Method find_search_method(std::string_view name) {
  static const Table<Method> kMethods = {
      {"find", find},         {"rfind", rfind},           {"index", index},       {"rindex", rindex},
      {"count", occurrences}, {"startswith", startswith}, {"endswith", endswith},
  };
  return find_in(kMethods, name);
}

}  // namespace shoal::jinja
