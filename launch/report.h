#pragma once
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

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

/// The `results` of a report, one line each.
inline void print_csv(const nlohmann::ordered_json& report) {
  std::vector<std::string> names;
  for (const auto& [name, value] : report["results"].at(0).items()) names.push_back(name);
  fmt::print("{}\n", fmt::join(names, ","));
  for (const nlohmann::ordered_json& r : report["results"]) {
    std::vector<std::string> values;
    for (const std::string& name : names) values.push_back(r[name].dump());
    fmt::print("{}\n", fmt::join(values, ","));
  }
}

}  // namespace shoal
