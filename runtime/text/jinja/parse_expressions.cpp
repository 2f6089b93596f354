#include <algorithm>
#include <array>

#include "runtime/text/jinja/parser.h"

namespace shoal::jinja {
namespace {

/// More than Jinja itself gets through within Python's limit on recursion.
constexpr int kMaxExpressionDepth = 200;

std::string described(const Token& token) {
  switch (token.kind) {
    case TokenKind::data:
      return "text";
    case TokenKind::variable_begin:
      return "'{{'";
    case TokenKind::variable_end:
      return "'}}'";
    case TokenKind::block_begin:
      return "'{%'";
    case TokenKind::block_end:
      return "'%}'";
    case TokenKind::string:
      return "a string";
    case TokenKind::end:
      return "the end of the template";
    default:
      return "'" + token.text + "'";
  }
}

template <class Op>
std::optional<Op> find_op(const Token& token, std::initializer_list<std::pair<std::string_view, Op>> ops) {
  if (token.kind != TokenKind::op) return std::nullopt;
  for (const auto& [text, op] : ops)
    if (token.text == text) return op;
  return std::nullopt;
}

ExpressionPtr arithmetic_chain(int line, ExpressionPtr first, Arithmetic::Rest rest) {
  if (rest.empty()) return first;
  return std::make_unique<Arithmetic>(line, std::move(first), std::move(rest));
}

}  // namespace

Nesting::Nesting(Parser& parser) : parser_(parser) {
  if (parser.depth_ >= kMaxExpressionDepth)
    syntax_fault(parser.current().line, "nested more than {} deep", kMaxExpressionDepth);
  ++parser.depth_;
}

Token Parser::take() {
  Token token = current();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool Parser::take_op(std::string_view op) {
  const bool there = current().is_op(op);
  if (there) take();
  return there;
}

bool Parser::take_name(std::string_view name) {
  const bool there = current().is_name(name);
  if (there) take();
  return there;
}

void Parser::expect_op(std::string_view op) {
  if (!take_op(op)) fail_at_token(fmt::format("'{}'", op));
}

void Parser::expect_name(std::string_view name) {
  if (!take_name(name)) fail_at_token(fmt::format("'{}'", name));
}

void Parser::expect(TokenKind kind) {
  if (current().kind != kind) fail_at_token(described({.kind = kind}));
  take();
}

std::string Parser::expect_any_name(std::string_view what) {
  if (current().kind != TokenKind::name) fail_at_token(what);
  return take().text;
}

void Parser::fail_at_token(std::string_view expected) const {
  syntax_fault(current().line, "expected {}, got {}", expected, described(current()));
}

ExpressionPtr Parser::expression(bool with_conditional) { return with_conditional ? conditional() : either(); }

ExpressionPtr Parser::conditional() {
  const Nesting nesting(*this);
  const int line = current().line;
  const size_t unknown_before = unknown_.size();
  ExpressionPtr value = either();
  std::vector<std::unique_ptr<Nesting>> chained;  // a if b if c ...: each holds the one before
  while (take_name("if")) {
    chained.push_back(std::make_unique<Nesting>(*this));
    ExpressionPtr test = either();
    ExpressionPtr otherwise = take_name("else") ? conditional() : nullptr;
    value = std::make_unique<Conditional>(line, std::move(value), std::move(test), std::move(otherwise));
    unknown_.resize(unknown_before);
  }
  return value;
}

ExpressionPtr Parser::either() {
  const int line = current().line;
  std::vector<ExpressionPtr> parts;
  do parts.push_back(both());
  while (take_name("or"));
  if (parts.size() == 1) return std::move(parts[0]);
  return std::make_unique<Logic>(line, false, std::move(parts));
}

ExpressionPtr Parser::both() {
  const int line = current().line;
  std::vector<ExpressionPtr> parts;
  do parts.push_back(negation());
  while (take_name("and"));
  if (parts.size() == 1) return std::move(parts[0]);
  return std::make_unique<Logic>(line, true, std::move(parts));
}

ExpressionPtr Parser::negation() {
  const int line = current().line;
  if (!take_name("not")) return comparison();
  const Nesting nesting(*this);
  return std::make_unique<Not>(line, negation());
}

ExpressionPtr Parser::comparison() {
  const int line = current().line;
  ExpressionPtr first = sum();
  Comparison::Rest rest;
  while (true) {
    if (const auto op = find_op<CompareOp>(current(), {{"==", CompareOp::equal},
                                                       {"!=", CompareOp::not_equal},
                                                       {"<", CompareOp::less},
                                                       {"<=", CompareOp::less_equal},
                                                       {">", CompareOp::greater},
                                                       {">=", CompareOp::greater_equal}})) {
      take();
      rest.emplace_back(*op, sum());
    } else if (take_name("in")) {
      rest.emplace_back(CompareOp::in, sum());
    } else if (current().is_name("not") && ahead().is_name("in")) {
      take();
      take();
      rest.emplace_back(CompareOp::not_in, sum());
    } else {
      break;
    }
  }
  if (rest.empty()) return first;
  return std::make_unique<Comparison>(line, std::move(first), std::move(rest));
}

ExpressionPtr Parser::sum() {
  const int line = current().line;
  ExpressionPtr first = joined();
  Arithmetic::Rest rest;
  while (const auto op = find_op<ArithmeticOp>(current(), {{"+", ArithmeticOp::add}, {"-", ArithmeticOp::subtract}})) {
    take();
    rest.emplace_back(*op, joined());
  }
  return arithmetic_chain(line, std::move(first), std::move(rest));
}

ExpressionPtr Parser::joined() {
  const int line = current().line;
  std::vector<ExpressionPtr> parts;
  do parts.push_back(product());
  while (take_op("~"));
  if (parts.size() == 1) return std::move(parts[0]);
  return std::make_unique<Joined>(line, std::move(parts));
}

ExpressionPtr Parser::product() {
  const int line = current().line;
  ExpressionPtr first = power();
  Arithmetic::Rest rest;
  while (const auto op = find_op<ArithmeticOp>(current(), {{"*", ArithmeticOp::multiply},
                                                           {"/", ArithmeticOp::divide},
                                                           {"//", ArithmeticOp::floor_divide},
                                                           {"%", ArithmeticOp::modulo}})) {
    take();
    rest.emplace_back(*op, power());
  }
  return arithmetic_chain(line, std::move(first), std::move(rest));
}

/// From the left, unlike Python's.
ExpressionPtr Parser::power() {
  const int line = current().line;
  ExpressionPtr first = unary();
  Arithmetic::Rest rest;
  while (take_op("**")) rest.emplace_back(ArithmeticOp::power, unary());
  return arithmetic_chain(line, std::move(first), std::move(rest));
}

ExpressionPtr Parser::unary(bool with_filters) {
  const Nesting nesting(*this);
  const int line = current().line;
  ExpressionPtr first;
  if (current().is_op("-") || current().is_op("+")) {
    const bool negative = take().text == "-";
    first = std::make_unique<Sign>(line, negative, unary(false));
  } else {
    first = primary();
  }
  Links links;
  postfix(links);
  if (with_filters) filters_and_tests(links);
  if (links.empty()) return first;
  return std::make_unique<Chain>(line, std::move(first), std::move(links));
}

ExpressionPtr Parser::primary() {
  const Token& token = current();
  const int line = token.line;
  switch (token.kind) {
    case TokenKind::name:
      return name_or_constant();
    case TokenKind::string: {
      std::string text;
      while (current().kind == TokenKind::string) text += take().text;
      return std::make_unique<Constant>(line, std::move(text));
    }
    case TokenKind::integer:
      return std::make_unique<Constant>(line, take().integer);
    case TokenKind::real:
      return std::make_unique<Constant>(line, take().real);
    default:
      break;
  }
  if (take_op("(")) {
    ExpressionPtr inside = tuple(true, true);
    expect_op(")");
    return inside;
  }
  if (token.is_op("[")) return list_display();
  if (token.is_op("{")) return dict_display();
  fail_at_token("an expression");
}

ExpressionPtr Parser::name_or_constant() {
  const Token token = take();
  if (token.text == "true" || token.text == "True") return std::make_unique<Constant>(token.line, true);
  if (token.text == "false" || token.text == "False") return std::make_unique<Constant>(token.line, false);
  if (token.text == "none" || token.text == "None") return std::make_unique<Constant>(token.line, None{});
  symbols_->load(token.text);
  uses_caller_ |= token.text == "caller";
  uses_kwargs_ |= token.text == "kwargs";
  uses_varargs_ |= token.text == "varargs";
  return std::make_unique<Name>(token.line, token.text);
}

bool Parser::at_tuple_end() const {
  return current().kind == TokenKind::variable_end || current().kind == TokenKind::block_end || current().is_op(")");
}

ExpressionPtr Parser::tuple(bool with_conditional, bool in_parentheses) {
  const int line = current().line;
  std::vector<ExpressionPtr> items;
  bool commas = false;
  while (!at_tuple_end()) {
    items.push_back(expression(with_conditional));
    if (!take_op(",")) break;
    commas = true;
  }
  if (!commas && !items.empty()) return std::move(items[0]);
  if (!commas && !in_parentheses) fail_at_token("an expression");
  return std::make_unique<Items>(line, SequenceKind::tuple, std::move(items));
}

ExpressionPtr Parser::list_display() {
  const int line = take().line;
  std::vector<ExpressionPtr> items;
  while (!current().is_op("]")) {
    items.push_back(expression());
    if (!take_op(",")) break;
  }
  expect_op("]");
  return std::make_unique<Items>(line, SequenceKind::list, std::move(items));
}

ExpressionPtr Parser::dict_display() {
  const int line = take().line;
  Entries::Pairs entries;
  while (!current().is_op("}")) {
    ExpressionPtr key = expression();
    expect_op(":");
    entries.emplace_back(std::move(key), expression());
    if (!take_op(",")) break;
  }
  expect_op("}");
  return std::make_unique<Entries>(line, std::move(entries));
}

void Parser::postfix(Links& links) {
  while (true) {
    if (current().is_op(".") || current().is_op("[")) {
      subscript(links);
    } else if (current().is_op("(")) {
      call(links);
    } else {
      return;
    }
  }
}

void Parser::filters_and_tests(Links& links) {
  while (true) {
    if (take_op("|")) {
      links.push_back(filter());
    } else if (take_name("is")) {
      links.push_back(test());
    } else if (current().is_op("(")) {
      call(links);
    } else {
      return;
    }
  }
}

void Parser::subscript(Links& links) {
  const int line = current().line;
  if (take_op(".")) {
    const Token token = take();
    if (token.kind == TokenKind::name) {
      links.push_back(std::make_unique<AttributeLink>(token.text));
    } else if (token.kind == TokenKind::integer) {
      links.push_back(std::make_unique<SubscriptLink>(std::make_unique<Constant>(line, token.integer)));
    } else {
      syntax_fault(token.line, "expected a name or number after '.', got {}", described(token));
    }
    return;
  }
  expect_op("[");
  ExpressionPtr parts[3];
  std::vector<ExpressionPtr> keys;
  int colons = 0;
  while (!current().is_op("]")) {
    if (take_op(":")) {
      if (++colons > 2 || !keys.empty()) syntax_fault(line, "a slice has too many parts");
    } else if (colons == 0 && parts[0] && take_op(",")) {
      keys.push_back(std::move(parts[0]));
    } else {
      if (parts[colons]) fail_at_token("']'");
      parts[colons] = expression();
    }
  }
  if (!keys.empty() && !parts[0]) fail_at_token("an expression");
  expect_op("]");
  if (colons > 0) {
    links.push_back(std::make_unique<SliceLink>(std::move(parts[0]), std::move(parts[1]), std::move(parts[2])));
  } else if (keys.empty() && parts[0]) {
    links.push_back(std::make_unique<SubscriptLink>(std::move(parts[0])));
  } else {
    if (parts[0]) keys.push_back(std::move(parts[0]));
    links.push_back(
        std::make_unique<SubscriptLink>(std::make_unique<Items>(line, SequenceKind::tuple, std::move(keys))));
  }
}

std::string Parser::dotted_name() {
  std::string name = expect_any_name("a name");
  while (take_op(".")) name += "." + expect_any_name("a name");
  return name;
}

std::unique_ptr<const Link> Parser::filter() {
  const int line = current().line;
  std::string name = dotted_name();
  if (!find_filter(name) && !soft_) unknown_.emplace_back(line, fmt::format("no filter named '{}'", name));
  CallArguments arguments;
  if (current().is_op("(")) arguments = call_arguments();
  return std::make_unique<FilterLink>(std::move(name), std::move(arguments));
}

std::unique_ptr<const Link> Parser::test() {
  const int line = current().line;
  const bool negated = take_name("not");
  std::string name = dotted_name();
  if (!find_test(name) && !soft_) unknown_.emplace_back(line, fmt::format("no test named '{}'", name));
  CallArguments arguments;
  const Token& token = current();
  if (token.is_op("(")) {
    arguments = call_arguments();
  } else if (token.kind == TokenKind::string || token.kind == TokenKind::integer || token.kind == TokenKind::real ||
             token.is_op("[") || token.is_op("{") ||
             (token.kind == TokenKind::name && !token.is_name("else") && !token.is_name("or") &&
              !token.is_name("and"))) {
    if (token.is_name("is")) syntax_fault(token.line, "tests cannot be chained with 'is'");
    const Nesting nesting(*this);
    ExpressionPtr argument = primary();
    Links links;
    postfix(links);
    if (!links.empty()) argument = std::make_unique<Chain>(line, std::move(argument), std::move(links));
    arguments.positional.push_back(std::move(argument));
  }
  return std::make_unique<TestLink>(std::move(name), negated, std::move(arguments));
}

void Parser::call(Links& links) {
  CallArguments arguments = call_arguments();
  std::optional<std::string> method;
  if (!links.empty()) {
    if (const auto* attribute = dynamic_cast<const AttributeLink*>(links.back().get())) {
      method = attribute->name();
      links.pop_back();
    }
  }
  links.push_back(std::make_unique<CallLink>(std::move(method), std::move(arguments)));
}

CallArguments Parser::call_arguments() {
  const int line = current().line;
  expect_op("(");
  CallArguments out;
  const auto require = [line](bool holds) {
    if (!holds) syntax_fault(line, "the arguments of a call are in a wrong order");
  };
  while (!current().is_op(")")) {
    if (take_op("*")) {
      require(!out.more_positional && !out.more_named);
      out.more_positional = expression();
    } else if (take_op("**")) {
      require(!out.more_named);
      out.more_named = expression();
    } else if (current().kind == TokenKind::name && ahead().is_op("=")) {
      require(!out.more_named);
      std::string name = take().text;
      take();
      for (const auto& [other, value] : out.named)
        if (other == name) syntax_fault(line, "argument '{}' is given twice", name);
      out.named.emplace_back(std::move(name), expression());
    } else {
      require(!out.more_positional && !out.more_named && out.named.empty());
      out.positional.push_back(expression());
    }
    if (!current().is_op(")")) expect_op(",");
  }
  take();
  return out;
}

}  // namespace shoal::jinja
