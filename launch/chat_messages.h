#pragma once
#include <nlohmann/json.hpp>
#include <string>

namespace shoal {

/// OpenAI's `messages`, checked and in the simpler form that chat templates expect: content as one string (parts of
/// type text joined with line breaks), `developer` as `system`. Throws ApiError naming the message at fault.
nlohmann::ordered_json read_messages(const nlohmann::ordered_json& messages);

}  // namespace shoal
