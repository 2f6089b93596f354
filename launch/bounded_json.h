#pragma once
#include <nlohmann/json.hpp>
#include <string_view>

namespace shoal {

/// JSON of clients and of models, which may be hostile: nested at most 64 deep (writing it back is recursive), with at
/// most 10,000 keys in all (objects that keep their order are searched from end to end). Throws Error, and
/// nlohmann::json::exception where it is no JSON.
nlohmann::ordered_json parse_bounded_json(std::string_view text);

}  // namespace shoal
