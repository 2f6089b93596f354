#pragma once
#include <string>
#include <string_view>

namespace shoal::text {

/// Rewrites a pattern in Oniguruma's Ruby syntax, which tokenizer.json files are written for, as a PCRE2 pattern that
/// matches the same text. The two agree on most of it; they differ on what \s, \w, \v, \h, \b and \p{Script} mean, on
/// possessive intervals and on nested classes. Throws Error, beginning with `place`, for what has no translation.
std::string oniguruma_to_pcre(std::string_view pattern, std::string_view place);

}  // namespace shoal::text
