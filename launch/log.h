#pragma once
#include <nlohmann/json.hpp>
#include <string_view>

/// The server's log on stderr: lines for people, or with --log-json one JSON object a line.
namespace shoal::log {

using Fields = nlohmann::ordered_json;

void start(bool json);
/// "listening address=http://…", or {"time": …, "level": "info", "event": "listening", "address": …}.
void info(std::string_view event, const Fields& fields = Fields::object());
void warning(std::string_view event, const Fields& fields = Fields::object());

}  // namespace shoal::log
