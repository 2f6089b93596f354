#pragma once
#include <cstdint>
#include <string>

namespace shoal::grammar {

/// The whole numbers from `least` to `most` (least <= most, at most 18 digits each) as an expression in GBNF.
std::string integer_range(std::int64_t least, std::int64_t most);

}  // namespace shoal::grammar
