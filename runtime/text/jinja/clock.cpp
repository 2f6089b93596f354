#include "runtime/text/jinja/clock.h"

#include <array>
#include <chrono>
#include <ctime>

#include "runtime/text/jinja/fault.h"

namespace shoal::jinja {
namespace {

/// One directive ("%d"), as strftime writes it.
std::string written(const std::tm& time, const std::string& directive) {
  std::array<char, 256> buffer;
  const size_t size = std::strftime(buffer.data(), buffer.size(), directive.c_str(), &time);
  return std::string(buffer.data(), size);
}

}  // namespace

std::string formatted_now(std::string_view format) {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  std::tm local{};
  if (!localtime_r(&seconds, &local)) fault("the local time is not known");
  std::string out;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%' || at + 1 == format.size()) {
      out += format[at];
      continue;
    }
    const char c = format[++at];
    if (c == 'f') {
      const auto micros = std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count();
      out += fmt::format("{:06}", micros % 1'000'000);
    } else if (c == 'z' || c == 'Z') {
      // Python's time here has no zone, and writes none.
    } else if ((c == '-' || c == '_' || c == '0' || c == '^' || c == '#') && at + 1 < format.size()) {
      // The C library's flags: %-d is the day without a leading zero.
      out += written(local, {'%', c, format[++at]});
    } else {
      out += written(local, {'%', c});
    }
  }
  return out;
}

}  // namespace shoal::jinja
