#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/table.h"

namespace shoal::jinja {
namespace {

/// The text of `self`, each of whose characters is to be looked up in Unicode's tables: that costs more than reading
/// it.
std::string_view looked_up(Context& context, const Value& self) {
  context.budget.work(self.as_string().size(), 8);
  return self.as_string();
}

template <std::string (*change)(std::string_view)>
Value changed(Context& context, const Value& self, const Args& args) {
  args.allow({});
  return change(looked_up(context, self));
}

/// True where there is a character and all are so.
template <bool (*is_so)(char32_t)>
Value all(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool so = !self.as_string().empty();
  for_each_character(looked_up(context, self), [&](char32_t c) { so = so && is_so(c); });
  return so;
}

bool is_alphanumeric(char32_t c) { return c != '_' && is_word(c); }
bool is_ascii(char32_t c) { return c < 0x80; }
bool is_numeric(char32_t c) { return is_alphanumeric(c) && !is_alphabetic(c); }

Value is_printable_text(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool so = true;
  for_each_character(looked_up(context, self), [&](char32_t c) { so = so && is_printable(c); });
  return so;
}

Value is_ascii_text(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool so = true;
  for_each_character(looked_up(context, self), [&](char32_t c) { so = so && is_ascii(c); });
  return so;
}

Value is_lower_text(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool some = false, others = false;
  for_each_character(looked_up(context, self), [&](char32_t c) {
    some = some || is_lower(c);
    others = others || is_upper(c) || is_title(c);
  });
  return some && !others;
}

Value is_upper_text(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool some = false, others = false;
  for_each_character(looked_up(context, self), [&](char32_t c) {
    some = some || is_upper(c);
    others = others || is_lower(c) || is_title(c);
  });
  return some && !others;
}

Value is_title_text(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool some = false, so = true, in_word = false;
  for_each_character(looked_up(context, self), [&](char32_t c) {
    const bool begins = is_upper(c) || is_title(c), goes_on = is_lower(c);
    so = so && !(begins && in_word) && !(goes_on && !in_word);
    in_word = begins || goes_on;
    some = some || in_word;
  });
  return some && so;
}

Value is_identifier(Context& context, const Value& self, const Args& args) {
  args.allow({});
  bool first = true, so = !self.as_string().empty();
  for_each_character(looked_up(context, self), [&](char32_t c) {
    so = so && (c == '_' || is_alphabetic(c) || (!first && (is_word(c))));
    first = false;
  });
  return so;
}

}  // namespace

Method find_case_method(std::string_view name) {
  static const Table<Method> kMethods = {
      {"upper", changed<to_upper>},        {"lower", changed<to_lower>},       {"title", changed<to_title>},
      {"capitalize", changed<capitalize>}, {"swapcase", changed<swap_case>},   {"casefold", changed<fold_case>},
      {"isspace", all<is_space>},          {"isalpha", all<is_alphabetic>},    {"isalnum", all<is_alphanumeric>},
      {"isdigit", all<is_decimal>},        {"isdecimal", all<is_decimal>},     {"isnumeric", all<is_numeric>},
      {"isascii", is_ascii_text},          {"isprintable", is_printable_text}, {"islower", is_lower_text},
      {"isupper", is_upper_text},          {"istitle", is_title_text},         {"isidentifier", is_identifier},
  };
  return find_in(kMethods, name);
}

}  // namespace shoal::jinja
