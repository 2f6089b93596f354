#pragma once
#include <map>
#include <string>
#include <string_view>

#include "runtime/text/jinja/nodes.h"

namespace shoal::jinja {

/// A parsed template. Renderings do not change it, so several may go on at a time.
class Template {
 public:
  /// `place` is where the text came from, for messages. Throws Error with place and line.
  Template(std::string_view text, std::string place);

  /// What the template prints with these variables, which take `input_bytes`. Throws Error.
  std::string render(const std::map<std::string, Value>& variables, size_t input_bytes) const;

  const std::string& place() const { return place_; }

 private:
  std::string place_;
  Body body_;
};

}  // namespace shoal::jinja
