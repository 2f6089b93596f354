#include "runtime/text/jinja/template.h"

#include "base/error.h"
#include "runtime/text/jinja/parser.h"
#include "runtime/text/utf8.h"

namespace shoal::jinja {
namespace {

/// The longest templates that models have come with are about 30 kB.
constexpr size_t kMaxTemplateBytes = 4u << 20;

}  // namespace

Template::Template(std::string_view text, const std::string& place) {
  if (text.size() > kMaxTemplateBytes)
    fail("{}: a chat template of {} bytes is more than the {} allowed", place, text.size(), kMaxTemplateBytes);
  if (!text::is_valid_utf8(text)) fail("{}: the chat template is not UTF-8", place);
  try {
    body_ = Parser(tokenize(text)).parse();
  } catch (const SyntaxFault& e) {
    fail("{}:{}: {}", place, e.line(), e.what());
  }
}

std::string Template::render(const std::map<std::string, Value>& variables, size_t input_bytes) const {
  Context context(variables, input_bytes);
  try {
    std::string out;
    jinja::render(body_, context, out);
    return out;
  } catch (const Raised& e) {
    throw Error(e.what());
  } catch (const Fault& e) {
    fail("line {}: {}", context.line, e.what());
  }
}

}  // namespace shoal::jinja
