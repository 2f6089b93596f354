#pragma once
#include <map>
#include <string>
#include <string_view>

#include "runtime/text/jinja/nodes.h"

namespace shoal::jinja {

/// A parsed template. Renderings do not change it, so several may go on at a time.
///
/// The language is Jinja 3.1 with what transformers gives to chat templates: trim_blocks and lstrip_blocks, break and
/// continue, generation blocks, raise_exception, strftime_now, its own tojson, and no way to change a list or dict. It
/// prints what Jinja2 prints; tests/text compares the two. Left out are other templates (include, import, extends; a
/// block is just its body), autoescape, integers of more than 64 bits, complex numbers, sets, lipsum, a few filters
/// (filters.cpp) and the methods encode, translate and maketrans of text.
class Template {
 public:
  /// `place` is where the text came from, for messages. Throws Error with place and line.
  Template(std::string_view text, const std::string& place);

  /// What the template prints with these variables, which take `input_bytes`. Throws Error with the line, but not the
  /// place: whoever had it rendered may be somebody who is not to know this machine's files.
  std::string render(const std::map<std::string, Value>& variables, size_t input_bytes) const;

 private:
  Body body_;
};

}  // namespace shoal::jinja
