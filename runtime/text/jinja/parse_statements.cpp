#include <algorithm>

#include "runtime/text/jinja/parser.h"

namespace shoal::jinja {

Body Parser::parse() {
  Body body = scoped_statements({});
  outermost_.resolve();
  if (!unknown_.empty()) throw SyntaxFault(unknown_[0].first, unknown_[0].second);
  return body;
}

Body Parser::statements(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(*this);
  const int begin_line = current().line;
  Body body;
  while (current().kind != TokenKind::end) {
    const Token token = take();
    switch (token.kind) {
      case TokenKind::data:
        body.push_back(std::make_unique<Data>(token.line, token.text));
        break;
      case TokenKind::variable_begin: {
        std::vector<ExpressionPtr> values;
        values.push_back(tuple(true, false));
        body.push_back(std::make_unique<Print>(token.line, std::move(values)));
        expect(TokenKind::variable_end);
        break;
      }
      case TokenKind::block_begin:
        if (current().kind == TokenKind::name && std::find(ends.begin(), ends.end(), current().text) != ends.end()) {
          return body;
        }
        body.push_back(statement());
        expect(TokenKind::block_end);
        break;
      default:
        syntax_fault(token.line, "unexpected token");
    }
  }
  if (ends.size() > 0) syntax_fault(begin_line, "the block that begins here has no '{}'", *(ends.end() - 1));
  return body;
}

Body Parser::scoped_statements(std::initializer_list<std::string_view> ends) {
  const int line = current().line;
  Body body = statements(ends);
  if (!symbols_->has_inner()) return body;
  auto hide = std::make_unique<Hide>(line);
  symbols_->set_hide(*hide);
  body.insert(body.begin(), std::move(hide));
  return body;
}

Body Parser::block_body(std::string_view end, Symbols& scope) {
  take_op(":");
  expect(TokenKind::block_end);
  const Temporarily<bool> hard(soft_, false);
  const Temporarily<Symbols*> inner(symbols_, &scope);
  Body body = scoped_statements({end});
  take();
  return body;
}

std::unique_ptr<const Statement> Parser::statement() {
  const int line = current().line;
  const std::string tag = expect_any_name("the name of a tag");
  if (tag == "set") return set(line);
  if (tag == "if") return if_else(line);
  if (tag == "for") return for_loop(line);
  if (tag == "macro") return macro(line);
  if (tag == "call") return call_block(line);
  if (tag == "filter") return filter_block(line);
  if (tag == "with") return with(line);
  if (tag == "print") return print(line);
  if (tag == "block") return block(line);
  if (tag == "autoescape") return autoescape(line);
  if (tag == "break") return loop_control(line, Flow::break_loop);
  if (tag == "continue") return loop_control(line, Flow::continue_loop);
  if (tag == "generation") {
    // transformers' own: marks what the model wrote, for training. A function of its own there, as a call block is.
    const Temporarily<int> no_loop(loops_, 0);
    return std::make_unique<With>(line, With::Values(), block_body("endgeneration"));
  }
  if (tag == "include" || tag == "import" || tag == "from" || tag == "extends") return refused(line, tag);
  syntax_fault(line, "unknown tag '{}'", tag);
}

std::unique_ptr<const Statement> Parser::set(int line) {
  Target to = target(true);
  if (take_op("=")) {
    ExpressionPtr value = tuple(true, false);
    note_stores(to);
    return std::make_unique<Set>(line, std::move(to), std::move(value));
  }
  note_stores(to);
  Links filters;
  while (take_op("|")) filters.push_back(filter());
  return std::make_unique<SetBlock>(line, std::move(to), std::move(filters), block_body("endset"));
}

std::unique_ptr<const Statement> Parser::for_loop(int line) {
  const Temporarily<int> inside(for_statements_, for_statements_ + 1);
  For::Parts parts;
  parts.target = target(false);
  expect_name("in");
  parts.items = tuple(false, false);
  if (take_name("if")) {
    const Temporarily<Symbols*> inner(symbols_, &symbols_->add_inner());
    note_parameters(parts.target, *symbols_);
    parts.test = expression();
  }
  parts.recursive = take_name("recursive");
  take_op(":");
  expect(TokenKind::block_end);
  const Temporarily<bool> hard(soft_, false);
  {
    const Temporarily<int> in_loop(loops_, loops_ + 1);
    const Temporarily<Symbols*> inner(symbols_, &symbols_->add_inner());
    note_parameters(parts.target, *symbols_);
    symbols_->parameter("loop");
    parts.body = scoped_statements({"else", "endfor"});
  }
  if (take().text == "else") parts.otherwise = block_body("endfor");
  return std::make_unique<For>(line, std::move(parts));
}

std::unique_ptr<const Statement> Parser::if_else(int line) {
  const Temporarily<bool> soft(soft_, true);
  If::Branches branches;
  Body otherwise;
  while (true) {
    ExpressionPtr test = tuple(false, false);
    take_op(":");
    expect(TokenKind::block_end);
    if (branches.empty()) symbols_->enter_if();
    branches.emplace_back(std::move(test), statements({"elif", "else", "endif"}));
    if (take_name("elif")) continue;
    if (take().text == "else") {
      take_op(":");
      expect(TokenKind::block_end);
      otherwise = statements({"endif"});
      take();
    }
    symbols_->leave_if();
    return std::make_unique<If>(line, std::move(branches), std::move(otherwise));
  }
}

std::unique_ptr<const Statement> Parser::with(int line) {
  With::Values values;
  while (current().kind != TokenKind::block_end) {
    if (!values.empty()) expect_op(",");
    // Jinja lets a with statement's variable be called loop, even in a loop.
    const Temporarily<int> anywhere(for_statements_, 0);
    Target to = target(false);
    expect_op("=");
    values.emplace_back(std::move(to), expression());
  }
  Symbols& inner = symbols_->add_inner();
  for (const auto& [to, value] : values) note_parameters(to, inner);
  return std::make_unique<With>(line, std::move(values), block_body("endwith", inner));
}

std::unique_ptr<const Statement> Parser::autoescape(int line) {
  If::Branches on(1);
  on[0].first = expression();
  on[0].second.push_back(std::make_unique<Refused>(line, "autoescape is not supported"));
  Body off;
  off.push_back(std::make_unique<With>(line, With::Values(), block_body("endautoescape")));
  return std::make_unique<If>(line, std::move(on), std::move(off));
}

std::unique_ptr<const Statement> Parser::block(int line) {
  const std::string name = expect_any_name("the name of the block");
  take_name("scoped");
  take_name("required");
  const Temporarily<int> no_loop(loops_, 0);
  Body body = block_body("endblock");
  take_name(name);
  return std::make_unique<With>(line, With::Values(), std::move(body));
}

void Parser::signature(Callable& callable, Symbols& scope) {
  const Temporarily<Symbols*> inner(symbols_, &scope);
  expect_op("(");
  while (!current().is_op(")")) {
    if (!callable.parameters.empty()) expect_op(",");
    callable.parameters.push_back(name_target(take()).name);
    scope.parameter(callable.parameters.back());
    if (take_op("=")) {
      callable.defaults.push_back(expression());
    } else if (!callable.defaults.empty()) {
      syntax_fault(current().line, "a parameter without a default follows one with a default");
    }
  }
  take();
  auto sorted = callable.parameters;
  std::sort(sorted.begin(), sorted.end());
  if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end()); twice != sorted.end())
    syntax_fault(current().line, "two parameters are named '{}'", *twice);
}

void Parser::callable_body(Callable& callable, std::string_view end, int line, Symbols& scope) {
  const Temporarily<int> no_loop(loops_, 0);
  const bool caller = std::exchange(uses_caller_, false);
  const bool kwargs = std::exchange(uses_kwargs_, false);
  const bool varargs = std::exchange(uses_varargs_, false);
  for (const char* special : {"caller", "kwargs", "varargs"}) scope.parameter(special);
  callable.body = block_body(end, scope);
  callable.uses_caller = uses_caller_;
  callable.uses_kwargs = uses_kwargs_;
  callable.uses_varargs = uses_varargs_;
  uses_caller_ |= caller;
  uses_kwargs_ |= kwargs;
  uses_varargs_ |= varargs;
  const auto without_default = callable.parameters.end() - static_cast<std::ptrdiff_t>(callable.defaults.size());
  if (callable.uses_caller && std::find(callable.parameters.begin(), without_default, "caller") != without_default)
    syntax_fault(line, "the parameter 'caller' must have a default");
}

std::unique_ptr<const Statement> Parser::macro(int line) {
  Callable callable;
  callable.name = name_target(take()).name;
  symbols_->store(callable.name);
  Symbols& inner = symbols_->add_inner();
  signature(callable, inner);
  callable_body(callable, "endmacro", line, inner);
  return std::make_unique<MacroStatement>(line, std::move(callable));
}

std::unique_ptr<const Statement> Parser::call_block(int line) {
  Callable callable;
  Symbols& inner = symbols_->add_inner();
  if (current().is_op("(")) signature(callable, inner);
  ExpressionPtr expression_of_call = expression();
  const auto* chain = dynamic_cast<const Chain*>(expression_of_call.get());
  if (!chain || !chain->last_call()) syntax_fault(line, "expected a call");
  std::unique_ptr<const Chain> call_to(chain);
  static_cast<void>(expression_of_call.release());  // call_to has it now
  callable_body(callable, "endcall", line, inner);
  return std::make_unique<CallBlock>(line, std::move(call_to), std::move(callable));
}

std::unique_ptr<const Statement> Parser::filter_block(int line) {
  Links filters;
  do filters.push_back(filter());
  while (take_op("|"));
  return std::make_unique<FilterBlock>(line, std::move(filters), block_body("endfilter"));
}

std::unique_ptr<const Statement> Parser::print(int line) {
  std::vector<ExpressionPtr> values;
  while (current().kind != TokenKind::block_end) {
    if (!values.empty()) expect_op(",");
    values.push_back(expression());
  }
  return std::make_unique<Print>(line, std::move(values));
}

std::unique_ptr<const Statement> Parser::loop_control(int line, Flow flow) {
  if (loops_ == 0) syntax_fault(line, "break and continue are for the inside of loops");
  return std::make_unique<LoopControl>(line, flow);
}

std::unique_ptr<const Statement> Parser::refused(int line, const std::string& tag) {
  while (current().kind != TokenKind::block_end && current().kind != TokenKind::end) take();
  return std::make_unique<Refused>(line, fmt::format("there are no other templates to {}", tag));
}

Target Parser::name_target(const Token& token) {
  static constexpr std::string_view kConstants[] = {"true", "false", "none", "True", "False", "None"};
  if (token.kind != TokenKind::name ||
      std::find(std::begin(kConstants), std::end(kConstants), token.text) != std::end(kConstants))
    syntax_fault(token.line, "cannot assign to this; a name is expected");
  return Target{.name = token.text};
}

void Parser::note_stores(const Target& to) {
  if (to.tuple) {
    for (const Target& item : to.items) note_stores(item);
  } else if (to.attribute.empty()) {
    symbols_->store(to.name);
  } else {
    symbols_->load(to.name);
  }
}

void Parser::note_parameters(const Target& to, Symbols& scope) {
  if (!to.tuple) scope.parameter(to.name);
  for (const Target& item : to.items) note_parameters(item, scope);
}

Target Parser::target_item(bool with_namespace) {
  if (take_op("(")) {
    const Nesting nesting(*this);
    Target inside = target(false);
    expect_op(")");
    return inside;
  }
  const int line = current().line;
  Target out = name_target(take());
  if (with_namespace && take_op(".")) out.attribute = expect_any_name("the name of an attribute");
  if (out.attribute.empty() && out.name == "loop" && for_statements_ > 0)
    syntax_fault(line, "cannot assign to 'loop' in a loop");
  return out;
}

Target Parser::target(bool with_namespace) {
  Target out;
  bool commas = false;
  while (!at_tuple_end()) {
    out.items.push_back(target_item(with_namespace));
    if (!take_op(",")) break;
    commas = true;
  }
  if (!commas && out.items.size() == 1) return Target(std::move(out.items[0]));
  if (!commas && !current().is_op(")")) fail_at_token("a name");
  out.tuple = true;
  return out;
}

}  // namespace shoal::jinja
