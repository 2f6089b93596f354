#pragma once
#include <CLI/CLI.hpp>

namespace shoal {

/// More are a slip: hosts have fewer cores.
constexpr int most_threads = 4096;

/// An option that is given must say something: a variable of the shell that is not set is no file and no key.
CLI::Validator not_empty();

/// A number with bounds that people can read: CLI11's own NonNegativeNumber and PositiveNumber print the largest
/// double.
CLI::Validator at_least(double low);
CLI::Validator within(double low, double high);

/// Makes every option of a floating-point number, of all commands, refuse what is no number or without end: CLI11 reads
/// both, and its ranges let nan pass.
void refuse_what_is_not_finite(CLI::App& app);

}  // namespace shoal
