#include "launch/option_checks.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string>

namespace shoal {
namespace {

/// What no number is, nan is too.
double number_of(const std::string& text) {
  double number;
  return CLI::detail::lexical_cast(text, number) ? number : std::numeric_limits<double>::quiet_NaN();
}

CLI::Validator number_check(double low, double high, const std::string& bounds) {
  const auto check = [=](const std::string& text) {
    const double number = number_of(text);
    return number >= low && number <= high ? std::string() : fmt::format("must be {}, not {}", bounds, text);
  };
  return CLI::Validator(check, bounds);
}

}  // namespace

CLI::Validator not_empty() {
  return CLI::Validator([](const std::string& value) { return value.empty() ? "must not be empty" : std::string(); },
                        "");
}

CLI::Validator at_least(double low) {
  return number_check(low, std::numeric_limits<double>::max(), fmt::format("{} or more", low));
}

CLI::Validator within(double low, double high) { return number_check(low, high, fmt::format("{} to {}", low, high)); }

void refuse_what_is_not_finite(CLI::App& app) {
  const CLI::Validator finite(
      [](const std::string& text) {
        return std::isfinite(number_of(text)) ? std::string() : "must be a finite number, not " + text;
      },
      "");
  for (CLI::App* command : app.get_subcommands(nullptr))
    for (CLI::Option* option : command->get_options())
      // In front of the option's own checks.
      if (option->get_type_name().starts_with("FLOAT")) option->transform(finite);
}

}  // namespace shoal
