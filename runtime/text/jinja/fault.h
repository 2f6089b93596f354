#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace shoal::jinja {

/// Something a template did wrong. The interpreter adds the line and turns it into shoal::Error.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A template that does not parse.
class SyntaxFault : public Fault {
 public:
  SyntaxFault(int line, const std::string& message) : Fault(message), line_(line) {}
  int line() const { return line_; }

 private:
  int line_;
};

/// A message that a template gave through raise_exception: for the caller as it is.
class Raised : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fault(fmt::format_string<Args...> format, Args&&... args) {
  throw Fault(fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void syntax_fault(int line, fmt::format_string<Args...> format, Args&&... args) {
  throw SyntaxFault(line, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace shoal::jinja
