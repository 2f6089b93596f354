#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Writing GBNF.
namespace shoal::grammar {

/// Longer grammars are refused, and those that would be before they are written: a few characters of a pattern or a
/// schema may take a thousand of GBNF, and those a hundred times their number in memory.
constexpr std::size_t max_gbnf_bytes = 256 << 10;

using CharacterRanges = std::vector<std::pair<char32_t, char32_t>>;

/// "text" between quotation marks.
std::string gbnf_literal(std::string_view text);
/// One character of the ranges, both ends included: [a-z].
std::string gbnf_class(const CharacterRanges& ranges);

/// What characters look like in the text that is matched: as they are, or inside a JSON string, where some must be
/// written with a backslash.
enum class Quoting { none, json };

/// A regular expression (ECMA 262 without look-around, back-references, word boundaries and \p) as an expression in
/// GBNF. `whole`: the text must match from end to end even without ^ and $. Throws Error naming what it cannot express.
std::string gbnf_of_regex(std::string_view regex, Quoting quoting, bool whole);

}  // namespace shoal::grammar
