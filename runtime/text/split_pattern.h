#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/json_field.h"
#include "runtime/text/regex.h"

namespace shoal::text {

/// The "pattern" member of a Split or a Replace: {"Regex": "..."} or {"String": "..."}.
Regex read_pattern(const JsonField& pattern);

/// What becomes of the parts of a text that match a pattern.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// The "behavior" member of a Split.
SplitBehavior read_split_behavior(const JsonField& behavior);

/// Cuts a text of `size` bytes at `matches`; `invert` exchanges what matched and what did not. Empty pieces are left
/// out.
void split_at(const std::vector<ByteRange>& matches, size_t size, SplitBehavior behavior, bool invert,
              std::vector<ByteRange>& pieces);

/// `text` with every match of `pattern` replaced by `content`.
std::string replace_matches(std::string_view text, const Regex& pattern, std::string_view content);

}  // namespace shoal::text
