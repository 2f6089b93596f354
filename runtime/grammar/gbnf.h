#pragma once
#include <string_view>

#include "runtime/grammar/grammar.h"

namespace shoal::grammar {

/// A grammar in GBNF, the notation of llama.cpp (its grammars/README.md describes it):
///
///     root ::= "yes" | "no" (" " reason)?      # a rule; `root` is what must match
///     reason ::= [a-z]+ | [^"\n]{3,10} | .
///
/// Literals and classes know \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH. A rule ends with its line, except inside
/// parentheses, behind ::= and around |. Throws Error with the line at fault, and for more than max_gbnf_bytes.
Network parse_gbnf(std::string_view text);

}  // namespace shoal::grammar
