#pragma once
#include <string>
#include <string_view>

namespace shoal::jinja {

/// Python's datetime.now().strftime(format): the local time.
std::string formatted_now(std::string_view format);

}  // namespace shoal::jinja
