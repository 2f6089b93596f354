#include "runtime/text/jinja/fault.h"
#include "runtime/text/jinja/generator.h"
#include "runtime/text/jinja/loop.h"
#include "runtime/text/jinja/statements.h"

namespace shoal::jinja {
namespace {

/// The items for which a for statement's `if` holds.
class TestedItems : public Generator {
 public:
  TestedItems(std::shared_ptr<Generator> items, const Target& target, const Expression& test,
              std::shared_ptr<Scope> around)
      : Generator(items->depth()),
        items_(std::move(items)),
        target_(target),
        test_(test),
        scope_(std::make_shared<Scope>(std::move(around))) {}

 private:
  std::optional<Value> make_next(Context& context) override {
    while (auto item = items_->next(context)) {
      const Within inside(context, scope_);
      scope_->clear();
      target_.assign(context, *item);
      if (truthy(test_.evaluate(context))) return item;
    }
    return std::nullopt;
  }

  std::shared_ptr<Generator> items_;
  const Target& target_;
  const Expression& test_;
  std::shared_ptr<Scope> scope_;
};

/// How many items `value` has, where that can be told without going through it.
std::optional<size_t> known_length(const Value& value) {
  if (value.is_sequence()) return value.items().size();
  if (value.is_dict()) return value.as_dict().entries.size();
  return std::nullopt;
}

class FinishLoop {
 public:
  explicit FinishLoop(Loop& loop) : loop_(loop) {}
  ~FinishLoop() { loop_.finish(); }
  FinishLoop(const FinishLoop&) = delete;
  FinishLoop& operator=(const FinishLoop&) = delete;

 private:
  Loop& loop_;
};

}  // namespace

Flow For::run(Context& context, std::string& out) const {
  return run_over(context, parts_.items->evaluate(context), 0, out);
}

Flow For::run_over(Context& context, const Value& items, int depth, std::string& out) const {
  context.budget.work(1, sizeof(Loop));
  std::shared_ptr<Generator> iterator = iterate(context, items);
  std::optional<size_t> length = known_length(items);
  if (parts_.test) {
    iterator = std::make_shared<TestedItems>(std::move(iterator), parts_.target, *parts_.test, context.scope);
    length.reset();
  }
  const auto loop = std::make_shared<Loop>(*this, std::move(iterator), length, depth, context.scope);
  const FinishLoop finish(*loop);
  bool finished_a_turn = false;
  if (const Flow flow = run_turns(context, loop, finished_a_turn, out); flow != Flow::on) return flow;
  // Jinja tells whether there were any items by a turn that came to its end: break and continue in the first one lead
  // here too.
  if (finished_a_turn || parts_.otherwise.empty()) return Flow::on;
  const Within inside(context, std::make_shared<Scope>(context.scope));
  return jinja::render(parts_.otherwise, context, out);
}

Flow For::run_turns(Context& context, const std::shared_ptr<Loop>& loop, bool& finished_a_turn,
                    std::string& out) const {
  const auto around = context.scope;
  auto scope = std::make_shared<Scope>(around);
  while (loop->advance(context)) {
    context.budget.step();
    // A scope that something else holds (a macro) stays as it is.
    if (scope.use_count() > 1) {
      context.budget.work(1, sizeof(Scope));
      scope = std::make_shared<Scope>(around);
    }
    const Within inside(context, scope);
    scope->clear();
    scope->set("loop", Value(std::static_pointer_cast<Object>(loop)));
    parts_.target.assign(context, loop->current());
    const Flow flow = jinja::render(parts_.body, context, out);
    if (flow == Flow::break_loop) break;
    if (flow == Flow::on) finished_a_turn = true;
  }
  return Flow::on;
}

}  // namespace shoal::jinja
