#pragma once

namespace shoal::jinja {

/// A character that becomes several in upper or title case.
struct SpecialCasing {
  char32_t c;
  const char* upper;
  const char* title;
};

/// Null for characters that do not.
const SpecialCasing* find_special_casing(char32_t c);

}  // namespace shoal::jinja
