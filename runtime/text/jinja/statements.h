#pragma once
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/text/jinja/nodes.h"

namespace shoal::jinja {

/// Text outside of tags.
class Data : public Statement {
 public:
  Data(int line, std::string text) : Statement(line), text_(std::move(text)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  std::string text_;
};

/// Makes names undefined where a scope begins; see Symbols.
class Hide : public Statement {
 public:
  explicit Hide(int line) : Statement(line) {}
  void add(const std::string& name) { names_.insert(name); }

 private:
  Flow run(Context& context, std::string& out) const override;

  std::set<std::string> names_;
};

/// {{ a }}, {% print a, b %}.
class Print : public Statement {
 public:
  Print(int line, std::vector<ExpressionPtr> values) : Statement(line), values_(std::move(values)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  std::vector<ExpressionPtr> values_;
};

class If : public Statement {
 public:
  using Branches = std::vector<std::pair<ExpressionPtr, Body>>;
  If(int line, Branches branches, Body otherwise)
      : Statement(line), branches_(std::move(branches)), otherwise_(std::move(otherwise)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Branches branches_;
  Body otherwise_;
};

class Set : public Statement {
 public:
  Set(int line, Target target, ExpressionPtr value)
      : Statement(line), target_(std::move(target)), value_(std::move(value)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Target target_;
  ExpressionPtr value_;
};

/// {% set a|filter %}...{% endset %}.
class SetBlock : public Statement {
 public:
  SetBlock(int line, Target target, Links filters, Body body)
      : Statement(line), target_(std::move(target)), filters_(std::move(filters)), body_(std::move(body)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Target target_;
  Links filters_;
  Body body_;
};

/// {% filter f %}...{% endfilter %}.
class FilterBlock : public Statement {
 public:
  FilterBlock(int line, Links filters, Body body)
      : Statement(line), filters_(std::move(filters)), body_(std::move(body)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Links filters_;
  Body body_;
};

/// {% with a = b %}...{% endwith %}; without values, any block with a scope of its own.
class With : public Statement {
 public:
  using Values = std::vector<std::pair<Target, ExpressionPtr>>;
  With(int line, Values values, Body body) : Statement(line), values_(std::move(values)), body_(std::move(body)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Values values_;
  Body body_;
};

/// {% break %}, {% continue %}.
class LoopControl : public Statement {
 public:
  LoopControl(int line, Flow flow) : Statement(line), flow_(flow) {}

 private:
  Flow run(Context&, std::string&) const override { return flow_; }

  Flow flow_;
};

/// A statement that is known and not allowed here, which is wrong only where it is reached.
class Refused : public Statement {
 public:
  Refused(int line, std::string why) : Statement(line), why_(std::move(why)) {}

 private:
  Flow run(Context&, std::string&) const override;

  std::string why_;
};

class Loop;

/// {% for target in items if test recursive %}body{% else %}otherwise{% endfor %}.
class For : public Statement {
 public:
  struct Parts {
    Target target;
    ExpressionPtr items;
    ExpressionPtr test;  // may be null
    bool recursive = false;
    Body body, otherwise;
  };
  For(int line, Parts parts) : Statement(line), parts_(std::move(parts)) {}

  bool recursive() const { return parts_.recursive; }
  /// Goes through `items`, `depth` loops of this statement being under way already.
  Flow run_over(Context& context, const Value& items, int depth, std::string& out) const;

 private:
  Flow run(Context& context, std::string& out) const override;
  Flow run_turns(Context& context, const std::shared_ptr<Loop>& loop, bool& finished_a_turn, std::string& out) const;

  Parts parts_;
};

/// What macros and call blocks have in common: parameters and a body.
struct Callable {
  std::string name;  // "": the body of a call block
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  Body body;
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false;  // the body speaks of these
};

class MacroStatement : public Statement {
 public:
  MacroStatement(int line, Callable callable) : Statement(line), callable_(std::move(callable)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  Callable callable_;
};

/// {% call(parameters) macro(...) %}body{% endcall %}.
class CallBlock : public Statement {
 public:
  CallBlock(int line, std::unique_ptr<const Chain> call, Callable caller)
      : Statement(line), call_(std::move(call)), caller_(std::move(caller)) {}

 private:
  Flow run(Context& context, std::string& out) const override;

  std::unique_ptr<const Chain> call_;
  Callable caller_;
};

}  // namespace shoal::jinja
