#include "runtime/text/jinja/json_text.h"

#include <algorithm>
#include <cmath>

#include "runtime/text/jinja/characters.h"
#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/operators.h"
#include "runtime/text/jinja/print.h"

namespace shoal::jinja {
namespace {

class JsonWriter {
 public:
  JsonWriter(Context& context, const JsonStyle& style) : context_(context), style_(style), out_(context) {}

  void write(const Value& value) {
    const Level level(context_.budget);
    context_.budget.work(16);
    if (value.is_string()) {
      write_text(value.as_string());
    } else if (value.is_dict()) {
      write_dict(value.as_dict());
    } else if (value.is_sequence(SequenceKind::list) || value.is_sequence(SequenceKind::tuple)) {
      write_list(value.items());
    } else {
      out_.add(scalar(value));
    }
  }
  std::string take() { return out_.take(); }

 private:
  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.as_bool() ? "true" : "false";
    if (value.is_int()) return std::to_string(value.as_int());
    if (!value.is_float()) fault("Object of type {} is not JSON serializable", type_name(value));
    const double number = value.as_double();
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
    return float_text(number);
  }

  void write_text(std::string_view text) {
    out_.add("\"");
    for_each_character(text, [this](char32_t c) {
      switch (c) {
        case '"':
          return out_.add("\\\"");
        case '\\':
          return out_.add("\\\\");
        case '\n':
          return out_.add("\\n");
        case '\r':
          return out_.add("\\r");
        case '\t':
          return out_.add("\\t");
        case '\f':
          return out_.add("\\f");
        case '\b':
          return out_.add("\\b");
        default:
          break;
      }
      if (c < 0x20 || (style_.ensure_ascii && c > 0x7E && c < 0x10000)) {
        out_.add(fmt::format("\\u{:04x}", static_cast<uint32_t>(c)));
      } else if (style_.ensure_ascii && c > 0x7E) {
        const auto above = static_cast<uint32_t>(c) - 0x10000;
        out_.add(fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (above >> 10), 0xDC00 + (above & 0x3FF)));
      } else {
        std::string bytes;
        text::append_utf8(bytes, c);
        out_.add(bytes);
      }
    });
    out_.add("\"");
  }

  void new_line() {
    if (!style_.indent) return;
    out_.add("\n");
    out_.add(*style_.indent, depth_);
  }

  void write_list(const List& items) {
    if (items.empty()) return out_.add("[]");
    out_.add("[");
    ++depth_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.add(style_.item_separator);
      new_line();
      write(items[i]);
    }
    --depth_;
    new_line();
    out_.add("]");
  }

  void write_dict(const Dict& dict) {
    if (dict.entries.empty()) return out_.add("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    context_.make(dict.entries.size());
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys)
      std::stable_sort(entries.begin(), entries.end(),
                       [this](const auto* a, const auto* b) { return less(context_, a->first, b->first); });
    out_.add("{");
    ++depth_;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_.add(style_.item_separator);
      new_line();
      write_key(entries[i]->first);
      out_.add(style_.key_separator);
      write(entries[i]->second);
    }
    --depth_;
    new_line();
    out_.add("}");
  }

  void write_key(const Value& key) {
    if (key.is_string()) return write_text(key.as_string());
    if (!key.is_none() && !key.is_number()) fault("a key of type {} has no JSON form", type_name(key));
    write_text(scalar(key));
  }

  Context& context_;
  const JsonStyle& style_;
  Writer out_;
  size_t depth_ = 0;
};

}  // namespace

std::string to_json(Context& context, const Value& value, const JsonStyle& style) {
  JsonWriter writer(context, style);
  writer.write(value);
  return writer.take();
}

}  // namespace shoal::jinja
