#pragma once
#include <string>
#include <string_view>

#include "runtime/text/jinja/lexer.h"

namespace shoal::jinja {

/// How many bytes at the start of `text` are a number (0: none), as Python writes them: 12, 1_000, 0x1f, 1.5, 2e10.
/// `after_dot`: the text follows a ".", so that "1.2" is "1" (Jinja's `list.1.2`).
size_t number_length(std::string_view text, bool after_dot);

/// The token of a number that number_length found. Throws SyntaxFault where it does not fit 64 bits.
Token number_token(std::string_view text, int line);

/// The value of a string literal, given without its quotes. Throws SyntaxFault on an escape that Python refuses.
std::string unescape(std::string_view text, int line);

}  // namespace shoal::jinja
