#pragma once
#include <cstdint>
#include <optional>
#include <string_view>

namespace shoal::jinja {

/// Python's int(text, base); none where it raises ValueError. Faults where the number does not fit 64 bits.
std::optional<int64_t> parse_integer(std::string_view text, int64_t base);

/// Python's float(text); none where it raises ValueError.
std::optional<double> parse_float(std::string_view text);

}  // namespace shoal::jinja
