#include "runtime/text/chat_template.h"

#include "base/error.h"

namespace shoal {

ChatTemplate::ChatTemplate(const std::string&, std::string, SpecialTokens special_tokens)
    : special_tokens_(std::move(special_tokens)) {}

std::optional<ChatTemplate> ChatTemplate::from_model_dir(const std::filesystem::path&) { return std::nullopt; }

std::string ChatTemplate::render(const Json&, const Json*, bool, const Json*) const { fail("not there yet"); }

}  // namespace shoal
