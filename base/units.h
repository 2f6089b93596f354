#pragma once
#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace shoal {

/// "642.3 GB", "512 B": decimal units, as disks and networks are sold.
inline std::string human_bytes(double bytes) {
  static constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
  std::size_t unit = 0;
  // 999.95 would be printed as 1000.0.
  for (; unit + 1 < std::size(units) && bytes >= (unit == 0 ? 1000 : 999.95); ++unit) bytes /= 1000;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}
inline std::string human_bytes(std::uint64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

/// "671.0 billion", "4.9 million", "512": parameters, tokens.
inline std::string human_count(std::int64_t n) {
  const auto value = static_cast<double>(n);
  if (value >= 999.95e6) return fmt::format("{:.1f} billion", value / 1e9);
  if (value >= 999.95e3) return fmt::format("{:.1f} million", value / 1e6);
  return fmt::format("{}", n);
}

}  // namespace shoal
