#pragma once
// <utility> must come before any Boost.Asio header: Boost 1.74's awaitable.hpp uses std::exchange without including it.
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace shoal {

/// What the process returns to the shell, on every rank.
enum class ExitCode { ok = 0, failure = 1, usage = 2, does_not_fit = 3 };

/// The one error type: a message for people that says what is wrong, where (file, tensor, field, rank), and what to do.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string message, ExitCode code = ExitCode::failure)
      : std::runtime_error(std::move(message)), exit_code(code) {}
  ExitCode exit_code;
};

/// Throws Error with a formatted message: `fail("{}: tensor {} is cut off", path, name)`.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace shoal
