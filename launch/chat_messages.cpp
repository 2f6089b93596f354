#include "launch/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "launch/api_error.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

std::string read_content(const Json& content, const std::string& place) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw bad_field(place, fmt::format("'{}' must be a string or a list of text parts", place));
  std::string text;
  for (std::size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    const std::string at = fmt::format("{}[{}]", place, i);
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) {
      throw bad_field(at, fmt::format("'{}' must be an object with a 'type'", at));
    }
    if (part["type"] != "text") {
      throw bad_field(
          at, fmt::format("'{}' is of type '{}'; this model takes text only", at, part["type"].get<std::string>()));
    }
    if (!part.contains("text") || !part["text"].is_string()) {
      throw bad_field(at, fmt::format("'{}.text' must be a string", at));
    }
    if (i > 0) text += '\n';
    text += part["text"].get<std::string>();
  }
  return text;
}

/// Calls of tools in a conversation's past. Templates read `type`, `function.name` and `function.arguments`.
void check_tool_calls(const Json& calls, const std::string& place) {
  const auto refuse = [&](const std::string& what) { return bad_field(place, fmt::format("'{}' {}", place, what)); };
  if (!calls.is_array()) throw refuse("must be a list");
  for (const Json& call : calls) {
    const bool whole = call.is_object() && call.contains("function") && call["function"].is_object() &&
                       call["function"].contains("name") && call["function"]["name"].is_string() &&
                       call["function"].contains("arguments") && call["function"]["arguments"].is_string();
    if (!whole) throw refuse("must hold objects with 'function.name' and 'function.arguments', both strings");
  }
}

Json read_message(const Json& message, const std::string& place) {
  static constexpr std::array<std::string_view, 5> roles = {"system", "developer", "user", "assistant", "tool"};
  if (!message.is_object()) throw bad_field(place, fmt::format("'{}' must be an object", place));
  if (!message.contains("role") || !message["role"].is_string()) {
    throw bad_field(place + ".role", fmt::format("'{}.role' must be a string", place));
  }
  const auto role = message["role"].get<std::string>();
  if (std::find(roles.begin(), roles.end(), role) == roles.end()) {
    throw bad_field(place + ".role", fmt::format("'{}.role' is '{}'; it must be one of system, developer, user, "
                                                 "assistant, tool",
                                                 place, role));
  }
  if (message.contains("prefix") && message["prefix"] == true)
    throw bad_field(place + ".prefix", fmt::format("'{}.prefix' is not supported: an answer is not continued", place));
  Json result = message;
  if (role == "developer") result["role"] = "system";

  const bool calls_tools = role == "assistant" && message.contains("tool_calls") && !message["tool_calls"].is_null() &&
                           !message["tool_calls"].empty();
  if (calls_tools) {
    check_tool_calls(message["tool_calls"], place + ".tool_calls");
    for (Json& call : result["tool_calls"]) call["type"] = "function";
  } else {
    result.erase("tool_calls");  // templates ask whether the key is there
  }
  const bool has_content = message.contains("content") && !message["content"].is_null();
  if (has_content) {
    result["content"] = read_content(message["content"], place + ".content");
  } else if (calls_tools) {
    result["content"] = nullptr;
  } else if (role == "assistant") {
    result["content"] = "";
  } else {
    throw bad_field(place + ".content", fmt::format("'{}.content' is required", place));
  }
  return result;
}

}  // namespace

Json read_messages(const Json& messages) {
  if (!messages.is_array() || messages.empty()) {
    throw bad_field("messages", "'messages' must be a list of at least one message");
  }
  Json result = Json::array();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    result.push_back(read_message(messages[i], fmt::format("messages[{}]", i)));
  }
  return result;
}

}  // namespace shoal
