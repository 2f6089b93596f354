#include "launch/log.h"

#include <fmt/chrono.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>

namespace shoal::log {
namespace {

bool as_json = false;

std::string text_of(const Fields& value) {
  return value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, Fields::error_handler_t::replace);
}

/// A value in a line for people: in quotation marks where it would not read as one word.
std::string word(const Fields& value) {
  const std::string text = text_of(value);
  const bool plain = !text.empty() && text.find_first_of(" \"\\\n\r\t=") == text.npos;
  return plain ? text : Fields(text).dump(-1, ' ', false, Fields::error_handler_t::replace);
}

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(now);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now - seconds).count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(std::chrono::system_clock::to_time_t(seconds)), ms);
}

void write(spdlog::level::level_enum level, std::string_view event, const Fields& fields) {
  std::string line(event);
  if (as_json) {
    const auto name = spdlog::level::to_string_view(level);
    Fields all = {{"time", utc_now()}, {"level", std::string(name.data(), name.size())}, {"event", event}};
    all.update(fields);
    line = text_of(all);
  } else {
    for (const auto& [key, value] : fields.items()) line += " " + key + "=" + word(value);
  }
  spdlog::log(level, "{}", line);
}

}  // namespace

void start(bool json) {
  as_json = json;
  spdlog::set_default_logger(spdlog::stderr_color_mt("shoal"));
  spdlog::set_pattern(json ? "%v" : "%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::flush_on(spdlog::level::info);
}

void info(std::string_view event, const Fields& fields) { write(spdlog::level::info, event, fields); }
void warning(std::string_view event, const Fields& fields) { write(spdlog::level::warn, event, fields); }

}  // namespace shoal::log
