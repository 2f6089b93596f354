#pragma once
#include <memory>
#include <optional>
#include <string>

#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/statements.h"

namespace shoal::jinja {

/// `loop` in a for statement. As jinja2.runtime.LoopContext, it takes items from what it goes through no earlier than
/// it must: one ahead for `last` and `nextitem`, all for `length` where that is not known.
class Loop : public Object {
 public:
  /// `known_length`: of what is gone through, where it has one. `depth`: how many loops of the same statement are
  /// around.
  Loop(const For& statement, std::shared_ptr<Generator> items, std::optional<size_t> known_length, int depth,
       std::shared_ptr<Scope> scope);

  /// To the next item; false at the end.
  bool advance(Context& context);
  const Value& current() const { return current_; }
  /// Drops all values: the loop is over. What has kept the loop would else keep these, and they perhaps the loop.
  void finish();

  std::optional<Value> attribute(Context& context, std::string_view name) override;
  bool has_method(std::string_view name) const override { return name == "cycle" || name == "changed"; }
  Value call_method(Context& context, std::string_view name, const Args& args) override;
  bool callable() const override { return true; }
  Value call(Context& context, const Args& args) override;
  std::string text(Context& context) override;
  std::string_view type_name() const override { return "LoopContext"; }

 private:
  int64_t length(Context& context);
  /// The item after the current one; none at the end.
  const std::optional<Value>& peek(Context& context);

  const For* statement_;
  std::shared_ptr<Generator> items_;
  std::shared_ptr<Scope> scope_;  // around the for statement
  std::optional<int64_t> length_;
  int depth_;
  int64_t index0_ = -1;
  Value before_, current_;
  std::optional<std::optional<Value>> after_;  // outer: not looked at yet
  std::optional<List> changed_;                // what changed() was last called with
};

}  // namespace shoal::jinja
