#pragma once
#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace shoal {

/// A command's report to stdout: as JSON, or as `print_text` puts it.
inline void print_report(const nlohmann::ordered_json& report, bool as_json,
                         void (*print_text)(const nlohmann::ordered_json&)) {
  if (as_json) {
    fmt::print("{}\n", report.dump(2));
  } else {
    print_text(report);
  }
}

}  // namespace shoal
