#include "runtime/text/jinja/print.h"

#include <charconv>
#include <cmath>

#include "runtime/text/jinja/characters.h"

namespace shoal::jinja {
namespace {

void write_repr(Context& context, const Value& value, Writer& out);

/// As Python, in single quotes unless that would take more escapes.
void write_text_repr(std::string_view text, Writer& out) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  out.add(std::string_view(&quote, 1));
  for (size_t at = 0; at < text.size();) {
    const auto c = text::decode_utf8(text, at);
    const std::string_view bytes = text.substr(at, c.size);
    at += c.size;
    if (c.value == static_cast<unsigned char>(quote) || c.value == '\\') {
      out.add("\\");
      out.add(bytes);
    } else if (c.value == '\n') {
      out.add("\\n");
    } else if (c.value == '\r') {
      out.add("\\r");
    } else if (c.value == '\t') {
      out.add("\\t");
    } else if (is_printable(c.value)) {
      out.add(bytes);
    } else if (c.value < 0x100) {
      out.add(fmt::format("\\x{:02x}", static_cast<uint32_t>(c.value)));
    } else if (c.value < 0x10000) {
      out.add(fmt::format("\\u{:04x}", static_cast<uint32_t>(c.value)));
    } else {
      out.add(fmt::format("\\U{:08x}", static_cast<uint32_t>(c.value)));
    }
  }
  out.add(std::string_view(&quote, 1));
}

void write_items(Context& context, const List& items, Writer& out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.add(", ");
    write_repr(context, items[i], out);
  }
}

void write_sequence(Context& context, const Sequence& sequence, Writer& out) {
  switch (sequence.kind) {
    case SequenceKind::list:
      out.add("[");
      write_items(context, sequence.items, out);
      out.add("]");
      return;
    case SequenceKind::tuple:
      out.add("(");
      write_items(context, sequence.items, out);
      out.add(sequence.items.size() == 1 ? ",)" : ")");
      return;
    case SequenceKind::range:
      out.add(fmt::format("range({}, {}", sequence.start, sequence.stop));
      out.add(sequence.step == 1 ? ")" : fmt::format(", {})", sequence.step));
      return;
    case SequenceKind::view:
      out.add(sequence.label);
      out.add("([");
      write_items(context, sequence.items, out);
      out.add("])");
      return;
  }
}

void write_repr(Context& context, const Value& value, Writer& out) {
  const Level level(context.budget);
  context.budget.work(16);
  if (value.is_undefined()) {
    out.add("Undefined");
  } else if (value.is_string()) {
    if (value.is_markup()) out.add("Markup(");
    write_text_repr(value.as_string(), out);
    if (value.is_markup()) out.add(")");
  } else if (value.is_sequence()) {
    write_sequence(context, value.as_sequence(), out);
  } else if (value.is_dict()) {
    out.add("{");
    bool first = true;
    for (const auto& [key, item] : value.as_dict().entries) {
      if (!std::exchange(first, false)) out.add(", ");
      write_repr(context, key, out);
      out.add(": ");
      write_repr(context, item, out);
    }
    out.add("}");
  } else {
    out.add(to_text(context, value));
  }
}

}  // namespace

std::string float_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  std::string out;
  if (text.starts_with('-')) {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  int exponent = 0;
  const char* exponent_text = text.data() + e + 1;
  std::from_chars(exponent_text + (*exponent_text == '+' ? 1 : 0), text.data() + text.size(), exponent);
  std::string digits(text.substr(0, 1));
  if (e > 2) digits += text.substr(2, e - 2);
  const auto count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  const auto whole = static_cast<size_t>(exponent + 1);
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string to_text(Context& context, const Value& value) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (value.is_bool()) return value.as_bool() ? "True" : "False";
  if (value.is_int()) return std::to_string(value.as_int());
  if (value.is_float()) return float_text(value.as_double());
  if (value.is_string()) {
    context.read(value);
    return value.as_string();
  }
  if (value.is_object()) {
    const Level level(context.budget);
    return value.as_object()->text(context);
  }
  return to_repr(context, value);
}

std::string to_repr(Context& context, const Value& value) {
  Writer out(context);
  write_repr(context, value, out);
  return out.take();
}

}  // namespace shoal::jinja
