#pragma once
#include <string>
#include <string_view>

namespace shoal::text {

enum class NormalizationForm { nfc, nfd, nfkc, nfkd };

/// `text` (valid UTF-8) in a Unicode normalization form. Takes time linear in the text, up to sorting the marks that
/// follow one letter.
std::string unicode_normalize(std::string_view text, NormalizationForm form);

/// `text` (valid UTF-8) with every character in its full lower-case form, regardless of its neighbours.
std::string lowercase(std::string_view text);

}  // namespace shoal::text
