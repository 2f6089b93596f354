#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// How a value is written by '%' and by str.format: the fields of Python's format specification.
struct FormatSpec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '='; 0: as the type has it
  char sign = '-';
  bool alternate = false;
  size_t width = 0;
  char grouping = 0;  // ',' or '_'
  std::optional<int> precision;
  char type = 0;
};

/// "[[fill]align][sign][#][0][width][grouping][.precision][type]".
FormatSpec parse_format_spec(std::string_view text);

/// A width or precision as a number; faults above what is sensible.
size_t format_size(int64_t number);

/// Python's format(value, spec).
std::string format_value(Context& context, const Value& value, const FormatSpec& spec);

/// The digits of a number in the spec's type, sign included, without padding.
std::string format_integer(int64_t number, const FormatSpec& spec);
std::string format_float(double number, const FormatSpec& spec);

/// `text` filled up to the spec's width; `align` is used where the spec has none.
std::string pad(Context& context, const std::string& text, const FormatSpec& spec, char align);

}  // namespace shoal::jinja
