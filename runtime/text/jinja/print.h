#pragma once
#include <string>
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// Python's str(value), which is what {{ value }} prints.
std::string to_text(Context& context, const Value& value);

/// Python's repr(value), which is how values print that are inside of others.
std::string to_repr(Context& context, const Value& value);

/// Python's repr of a float: the shortest digits that give the same float.
std::string float_text(double number);

/// Text that is being put together. What it grows by is charged.
class Writer {
 public:
  explicit Writer(Context& context) : context_(context) {}
  void add(std::string_view text) {
    context_.budget.work(text.size());
    text_ += text;
  }
  void add(std::string_view text, size_t times) {
    context_.budget.work(text.size(), times);
    for (size_t i = 0; i < times; ++i) text_ += text;
  }
  bool empty() const { return text_.empty(); }
  std::string take() { return std::move(text_); }

 private:
  Context& context_;
  std::string text_;
};

}  // namespace shoal::jinja
