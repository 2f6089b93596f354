#pragma once
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/filters.h"
#include "runtime/text/jinja/is_tests.h"
#include "runtime/text/jinja/operators.h"
#include "runtime/text/jinja/value.h"

/// What a template is parsed into. Nodes do not change once parsed, so several renderings may use them at a time.
/// Chains (a + b + c, x.y.z, x|f|g) are kept flat, so that nodes are nested no deeper than the text is.
namespace shoal::jinja {

class Expression {
 public:
  explicit Expression(int line) : line_(line) {}
  virtual ~Expression() = default;
  Value evaluate(Context& context) const;

 private:
  virtual Value compute(Context& context) const = 0;

  int line_;
};
using ExpressionPtr = std::unique_ptr<const Expression>;

class Constant : public Expression {
 public:
  Constant(int line, Value value) : Expression(line), value_(std::move(value)) {}

 private:
  Value compute(Context&) const override { return value_; }

  Value value_;
};

class Name : public Expression {
 public:
  Name(int line, std::string name) : Expression(line), name_(std::move(name)) {}

 private:
  Value compute(Context& context) const override { return context.lookup(name_); }

  std::string name_;
};

/// [a, b] or (a, b).
class Items : public Expression {
 public:
  Items(int line, SequenceKind kind, std::vector<ExpressionPtr> items)
      : Expression(line), kind_(kind), items_(std::move(items)) {}

 private:
  Value compute(Context& context) const override;

  SequenceKind kind_;
  std::vector<ExpressionPtr> items_;
};

/// {a: b}.
class Entries : public Expression {
 public:
  using Pairs = std::vector<std::pair<ExpressionPtr, ExpressionPtr>>;
  Entries(int line, Pairs entries) : Expression(line), entries_(std::move(entries)) {}

 private:
  Value compute(Context& context) const override;

  Pairs entries_;
};

/// -a, +a.
class Sign : public Expression {
 public:
  Sign(int line, bool negative, ExpressionPtr operand)
      : Expression(line), negative_(negative), operand_(std::move(operand)) {}

 private:
  Value compute(Context& context) const override { return signed_value(operand_->evaluate(context), negative_); }

  bool negative_;
  ExpressionPtr operand_;
};

class Not : public Expression {
 public:
  Not(int line, ExpressionPtr operand) : Expression(line), operand_(std::move(operand)) {}

 private:
  Value compute(Context& context) const override { return !truthy(operand_->evaluate(context)); }

  ExpressionPtr operand_;
};

/// a + b - c: operators of one precedence, from the left.
class Arithmetic : public Expression {
 public:
  using Rest = std::vector<std::pair<ArithmeticOp, ExpressionPtr>>;
  Arithmetic(int line, ExpressionPtr first, Rest rest)
      : Expression(line), first_(std::move(first)), rest_(std::move(rest)) {}

 private:
  Value compute(Context& context) const override;

  ExpressionPtr first_;
  Rest rest_;
};

/// a ~ b ~ c.
class Joined : public Expression {
 public:
  Joined(int line, std::vector<ExpressionPtr> parts) : Expression(line), parts_(std::move(parts)) {}

 private:
  Value compute(Context& context) const override;

  std::vector<ExpressionPtr> parts_;
};

/// a < b <= c.
class Comparison : public Expression {
 public:
  using Rest = std::vector<std::pair<CompareOp, ExpressionPtr>>;
  Comparison(int line, ExpressionPtr first, Rest rest)
      : Expression(line), first_(std::move(first)), rest_(std::move(rest)) {}

 private:
  Value compute(Context& context) const override;

  ExpressionPtr first_;
  Rest rest_;
};

/// a and b and c, or the same with or.
class Logic : public Expression {
 public:
  Logic(int line, bool conjunction, std::vector<ExpressionPtr> parts)
      : Expression(line), conjunction_(conjunction), parts_(std::move(parts)) {}

 private:
  Value compute(Context& context) const override;

  bool conjunction_;
  std::vector<ExpressionPtr> parts_;
};

/// value if test else otherwise; `otherwise` may be null.
class Conditional : public Expression {
 public:
  Conditional(int line, ExpressionPtr value, ExpressionPtr test, ExpressionPtr otherwise)
      : Expression(line), value_(std::move(value)), test_(std::move(test)), otherwise_(std::move(otherwise)) {}

 private:
  Value compute(Context& context) const override;

  ExpressionPtr value_, test_, otherwise_;
};

/// What stands between the parentheses of a call.
struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr more_positional, more_named;  // *a, **a; may be null

  Args evaluate(Context& context) const;
};

/// One link of a chain: what is done to the value that the chain has come to.
class Link {
 public:
  virtual ~Link() = default;
  virtual Value apply(Context& context, const Value& on) const = 0;
};

class AttributeLink : public Link {
 public:
  explicit AttributeLink(std::string name) : name_(std::move(name)) {}
  const std::string& name() const { return name_; }
  Value apply(Context& context, const Value& on) const override;

 private:
  std::string name_;
};

class SubscriptLink : public Link {
 public:
  explicit SubscriptLink(ExpressionPtr key) : key_(std::move(key)) {}
  Value apply(Context& context, const Value& on) const override;

 private:
  ExpressionPtr key_;
};

class SliceLink : public Link {
 public:
  SliceLink(ExpressionPtr start, ExpressionPtr stop, ExpressionPtr step)
      : start_(std::move(start)), stop_(std::move(stop)), step_(std::move(step)) {}
  Value apply(Context& context, const Value& on) const override;

 private:
  ExpressionPtr start_, stop_, step_;  // may be null
};

/// (...) or, with a name, .name(...).
class CallLink : public Link {
 public:
  CallLink(std::optional<std::string> method, CallArguments arguments)
      : method_(std::move(method)), arguments_(std::move(arguments)) {}
  Value apply(Context& context, const Value& on) const override;
  /// The same with one more argument, `caller`.
  Value apply(Context& context, const Value& on, const Value& caller) const;

 private:
  Value call(Context& context, const Value& on, const Args& args) const;

  std::optional<std::string> method_;
  CallArguments arguments_;
};

class FilterLink : public Link {
 public:
  FilterLink(std::string name, CallArguments arguments)
      : name_(std::move(name)), filter_(find_filter(name_)), arguments_(std::move(arguments)) {}
  Value apply(Context& context, const Value& on) const override;

 private:
  std::string name_;
  Filter filter_;  // null: unknown, which is wrong only where it is applied
  CallArguments arguments_;
};

/// is name, is not name.
class TestLink : public Link {
 public:
  TestLink(std::string name, bool negated, CallArguments arguments)
      : name_(std::move(name)), test_(find_test(name_)), negated_(negated), arguments_(std::move(arguments)) {}
  Value apply(Context& context, const Value& on) const override;

 private:
  std::string name_;
  Test test_;  // null: unknown
  bool negated_;
  CallArguments arguments_;
};

using Links = std::vector<std::unique_ptr<const Link>>;

/// A chain's value, from the value it begins with.
Value apply(Context& context, const Links& links, Value value);

/// x.y[z](...)|f is g.
class Chain : public Expression {
 public:
  Chain(int line, ExpressionPtr first, Links links)
      : Expression(line), first_(std::move(first)), links_(std::move(links)) {}
  /// Null where the chain does not end in a call.
  const CallLink* last_call() const;
  /// As evaluate, the last call with the argument `caller`.
  Value evaluate_with_caller(Context& context, const Value& caller) const;

 private:
  Value compute(Context& context) const override;

  ExpressionPtr first_;
  Links links_;
};

/// What `for` and `set` assign to: a name, an attribute of a namespace, or several of these.
struct Target {
  std::string name;
  std::string attribute;      // of the namespace `name`; "": the name itself
  std::vector<Target> items;  // unpacked into these, where there are any or `tuple` is set
  bool tuple = false;

  void assign(Context& context, const Value& value) const;
  /// Faults where the target has an attribute of something that is no namespace.
  void check(Context& context) const;
};

/// How a statement ended.
enum class Flow { on, break_loop, continue_loop };

class Statement {
 public:
  explicit Statement(int line) : line_(line) {}
  virtual ~Statement() = default;
  /// Appends what the statement prints to `out`.
  Flow render(Context& context, std::string& out) const;

 private:
  virtual Flow run(Context& context, std::string& out) const = 0;

  int line_;
};
using Body = std::vector<std::unique_ptr<const Statement>>;

Flow render(const Body& body, Context& context, std::string& out);

}  // namespace shoal::jinja
