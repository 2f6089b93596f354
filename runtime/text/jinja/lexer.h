#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shoal::jinja {

enum class TokenKind {
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  int line = 1;
  std::string text;  // of data, names and operators; the value of a string
  int64_t integer = 0;
  double real = 0;

  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
  bool is_op(std::string_view t) const { return is(TokenKind::op, t); }
  bool is_name(std::string_view t) const { return is(TokenKind::name, t); }
};

/// The tokens of a template, the last of kind `end`. White space around tags is treated as Jinja does with trim_blocks
/// and lstrip_blocks set and keep_trailing_newline not set, as transformers has them. Throws SyntaxFault.
std::vector<Token> tokenize(std::string_view source);

}  // namespace shoal::jinja
