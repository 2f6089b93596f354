#pragma once
#include <cstdint>
#include <string>

namespace shoal::grammar {

/// The whole numbers from `least` to `most` (least <= most, at most 18 digits each) as an expression in GBNF.
std::string integer_range(std::int64_t least, std::int64_t most);

/// The numbers from `least` / 10^places to `most` / 10^places, written with so many places behind the point (at least
/// 1):
/// (-5, 10, 1) matches -0.5 and 1.0. Zero has no sign.
std::string decimal_range(std::int64_t least, std::int64_t most, int places);

}  // namespace shoal::grammar
