#pragma once
#include <string>
#include <string_view>

/// Server-sent events, as OpenAI's clients read them.
namespace shoal::sse {

inline constexpr const char* content_type = "text/event-stream; charset=utf-8";
/// A comment, which clients pass over.
inline constexpr const char* keep_alive = ": keep-alive\n\n";
inline constexpr std::string_view done = "data: [DONE]\n\n";

/// JSON has no raw line breaks, so it is always one line of data.
inline std::string event(const std::string& json) { return "data: " + json + "\n\n"; }

}  // namespace shoal::sse
