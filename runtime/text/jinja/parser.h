#pragma once
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/lexer.h"
#include "runtime/text/jinja/nodes.h"
#include "runtime/text/jinja/statements.h"
#include "runtime/text/jinja/symbols.h"

namespace shoal::jinja {

/// Builds the nodes of a template. The grammar, and where it is odd its oddities, are those of jinja2/parser.py.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  /// The whole template; throws SyntaxFault.
  Body parse();

 private:
  // Tokens.
  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool take_op(std::string_view op);
  bool take_name(std::string_view name);
  void expect_op(std::string_view op);
  void expect_name(std::string_view name);
  void expect(TokenKind kind);
  std::string expect_any_name(std::string_view what);
  [[noreturn]] void fail_at_token(std::string_view expected) const;

  // Expressions, from the loosest binding to the tightest.
  ExpressionPtr expression(bool with_conditional = true);
  ExpressionPtr conditional();
  ExpressionPtr either();
  ExpressionPtr both();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr joined();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters = true);
  ExpressionPtr primary();
  ExpressionPtr name_or_constant();
  ExpressionPtr list_display();
  ExpressionPtr dict_display();
  /// One expression, or several with commas between them as a tuple.
  ExpressionPtr tuple(bool with_conditional, bool in_parentheses);
  bool at_tuple_end() const;
  void postfix(Links& links);
  void filters_and_tests(Links& links);
  void subscript(Links& links);
  std::unique_ptr<const Link> test();
  std::unique_ptr<const Link> filter();
  void call(Links& links);
  CallArguments call_arguments();
  std::string dotted_name();

  // Statements.
  /// Statements up to a tag named one of `ends`, whose name is left as the current token. Without ends, up to the end.
  Body statements(std::initializer_list<std::string_view> ends);
  /// Statements with a scope of their own, the current one.
  Body scoped_statements(std::initializer_list<std::string_view> ends);
  /// What stands in a block: from behind the tag that opens it to its closing tag, which is `end`; in the scope
  /// `scope`, or one of its own.
  Body block_body(std::string_view end, Symbols& scope);
  Body block_body(std::string_view end) { return block_body(end, symbols_->add_inner()); }
  std::unique_ptr<const Statement> statement();
  std::unique_ptr<const Statement> set(int line);
  std::unique_ptr<const Statement> for_loop(int line);
  std::unique_ptr<const Statement> if_else(int line);
  std::unique_ptr<const Statement> with(int line);
  std::unique_ptr<const Statement> autoescape(int line);
  std::unique_ptr<const Statement> block(int line);
  std::unique_ptr<const Statement> macro(int line);
  std::unique_ptr<const Statement> call_block(int line);
  std::unique_ptr<const Statement> filter_block(int line);
  std::unique_ptr<const Statement> print(int line);
  std::unique_ptr<const Statement> loop_control(int line, Flow flow);
  std::unique_ptr<const Statement> refused(int line, const std::string& tag);
  void signature(Callable& callable, Symbols& scope);
  void callable_body(Callable& callable, std::string_view end, int line, Symbols& scope);

  // Targets of assignments.
  Target target(bool with_namespace);
  Target target_item(bool with_namespace);
  Target name_target(const Token& token);
  /// Notes that the current scope sets what `to` has, or that `scope` has it from the start.
  void note_stores(const Target& to);
  void note_parameters(const Target& to, Symbols& scope);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;  // of expressions and statements in one another
  friend class Nesting;

  /// Filters and tests that do not exist. Jinja refuses these unless they stand in an if or a conditional expression.
  std::vector<std::pair<int, std::string>> unknown_;
  Symbols outermost_{nullptr};
  Symbols* symbols_ = &outermost_;  // of the current scope
  bool soft_ = false;               // in an if
  int loops_ = 0;           // loops around, from the innermost macro or call block on: what break and continue need
  int for_statements_ = 0;  // for statements around, across macros
  bool uses_caller_ = false, uses_kwargs_ = false, uses_varargs_ = false;  // seen in the body of the present macro
};

/// Holds one level of nesting: each takes room on the stack, here and when the nodes are evaluated and freed.
class Nesting {
 public:
  explicit Nesting(Parser& parser);
  ~Nesting() { --parser_.depth_; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;

 private:
  Parser& parser_;
};

/// Sets a variable while this lives.
template <class T>
class Temporarily {
 public:
  Temporarily(T& variable, T value) : variable_(variable), before_(std::exchange(variable, value)) {}
  ~Temporarily() { variable_ = before_; }
  Temporarily(const Temporarily&) = delete;
  Temporarily& operator=(const Temporarily&) = delete;

 private:
  T& variable_;
  T before_;
};

}  // namespace shoal::jinja
