#include "runtime/text/jinja/percent_format.h"

#include <cmath>

#include "runtime/text/jinja/arguments.h"
#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/format_spec.h"
#include "runtime/text/jinja/methods.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

class PercentFormat {
 public:
  PercentFormat(Context& context, const Value& format, const Value& values)
      : context_(context), markup_(format.is_markup()), text_(format.as_string()), values_(values), out_(context) {}

  Value run() {
    while (at_ < text_.size()) {
      const size_t percent = std::min(text_.find('%', at_), text_.size());
      out_.add(text_.substr(at_, percent - at_));
      at_ = percent + 1;
      if (percent < text_.size()) write_conversion();
    }
    // Python takes anything with items by key for a dict, of which nothing needs to be used.
    const bool keyed = values_.is_dict() || values_.is_undefined() || values_.is_sequence(SequenceKind::list) ||
                       values_.is_sequence(SequenceKind::range);
    const bool all_used =
        values_.is_sequence(SequenceKind::tuple) ? next_ >= values_.items().size() : next_ > 0 || keyed;
    if (!all_used) fault("not all arguments are converted by the format");
    return markup_ ? Value::markup(out_.take()) : Value(out_.take());
  }

 private:
  char current() const {
    if (at_ >= text_.size()) fault("incomplete format");
    return text_[at_];
  }

  Value take_value() {
    if (values_.is_sequence(SequenceKind::tuple)) {
      if (next_ >= values_.items().size()) fault("not enough arguments for the format");
      return values_.items()[next_++];
    }
    if (next_++ > 0) fault("not enough arguments for the format");
    return values_;
  }

  Value named_value() {
    const size_t begin = at_;
    int open = 1;
    while (open > 0) {
      const char c = current();
      open += c == '(' ? 1 : c == ')' ? -1 : 0;
      ++at_;
    }
    if (!values_.is_dict()) fault("the format needs a dict");
    const std::string_view key = text_.substr(begin, at_ - 1 - begin);
    const Value* value = values_.as_dict().find(key);
    if (!value) fault("the format's key '{}' is missing", key);
    return *value;
  }

  /// A number, or '*' for one among the values.
  std::optional<int64_t> take_number() {
    if (current() == '*') {
      ++at_;
      return as_integer(take_value(), "*");
    }
    std::optional<int64_t> number;
    while (current() >= '0' && current() <= '9') {
      number = std::min<int64_t>(number.value_or(0) * 10 + (current() - '0'), INT32_MAX);
      ++at_;
    }
    return number;
  }

  void write_conversion() {
    std::optional<Value> named;
    if (current() == '(') {
      ++at_;
      named = named_value();
    }
    FormatSpec spec{.align = '>'};
    bool zero = false;
    for (;; ++at_) {
      const char c = current();
      if (c == '-') {
        spec.align = '<';
      } else if (c == '+' || (c == ' ' && spec.sign == '-')) {
        spec.sign = c;
      } else if (c == '#') {
        spec.alternate = true;
      } else if (c == '0') {
        zero = true;
      } else if (c != ' ') {
        break;
      }
    }
    if (const auto width = take_number()) {
      if (*width < 0) spec.align = '<';
      spec.width = format_size(*width < 0 && *width > INT64_MIN ? -*width : *width);
    }
    if (current() == '.') {
      ++at_;
      spec.precision = static_cast<int>(format_size(take_number().value_or(0)));
    }
    while (current() == 'h' || current() == 'l' || current() == 'L') ++at_;
    spec.type = current();
    ++at_;
    if (spec.type == '%') return out_.add("%");
    const Value value = named ? *named : take_value();
    const bool number = std::string_view("diuoxXeEfFgG").find(spec.type) != std::string_view::npos;
    if (zero && number && spec.align != '<') {
      spec.align = '=';
      spec.fill = "0";
    }
    out_.add(pad(context_, converted(value, spec), spec, '>'));
  }

  std::string converted(const Value& value, FormatSpec& spec) {
    switch (spec.type) {
      case 's':
      case 'r':
      case 'a': {
        std::string text = spec.type == 's' ? to_text(context_, value) : to_repr(context_, value);
        if (markup_ && !(spec.type == 's' && value.is_markup())) text = escape_html(context_, text);
        if (spec.precision) text.resize(byte_offset(text, static_cast<size_t>(*spec.precision)));
        return text;
      }
      case 'c': {
        if (value.is_string() && length(value.as_string()) == 1) return value.as_string();
        return format_value(context_, as_integer(value, "%c"), {.type = 'c'});
      }
      case 'd':
      case 'i':
      case 'u':
      case 'o':
      case 'x':
      case 'X': {
        const bool decimal = spec.type == 'd' || spec.type == 'i' || spec.type == 'u';
        if (!value.is_integral() && !(decimal && value.is_float())) refuse(value, spec.type);
        const double real = value.is_float() ? value.as_double() : 0;
        if (!(std::abs(real) < 9.2e18)) fault("the number does not fit 64 bits");
        const int64_t whole = value.is_float() ? static_cast<int64_t>(real) : value.as_int();
        if (decimal) spec.type = 'd';
        std::string text = format_integer(whole, spec);
        if (!spec.precision) return text;
        FormatSpec digits{.fill = "0", .align = '=', .alternate = spec.alternate};
        digits.width = static_cast<size_t>(*spec.precision) + (text.find_first_of("0123456789") > 0 ? 1 : 0) +
                       (spec.alternate && !decimal ? 2 : 0);
        return pad(context_, text, digits, '=');
      }
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        if (!value.is_number()) refuse(value, spec.type);
        return format_float(value.as_double(), spec);
      default:
        fault("unsupported format character '{}'", spec.type);
    }
  }

  [[noreturn]] static void refuse(const Value& value, char type) {
    if (value.is_undefined()) fault("{}", value.why_undefined());
    fault("%{} format: a number is required, not {}", type, type_name(value));
  }

  Context& context_;
  bool markup_;
  std::string_view text_;
  const Value& values_;
  Writer out_;
  size_t at_ = 0;
  size_t next_ = 0;  // of the values
};

}  // namespace

Value percent_format(Context& context, const Value& format, const Value& values) {
  context.read(format);
  return PercentFormat(context, format, values).run();
}

}  // namespace shoal::jinja
