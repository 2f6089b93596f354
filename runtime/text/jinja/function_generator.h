#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "runtime/text/jinja/generator.h"

namespace shoal::jinja {

/// A generator that is a function: it gives the next value each time, none at the end.
class FunctionGenerator : public Generator {
 public:
  using Next = std::function<std::optional<Value>(Context&)>;
  FunctionGenerator(Next next, int nested) : Generator(nested), next_(std::move(next)) {}

 private:
  std::optional<Value> make_next(Context& context) override { return next_(context); }

  Next next_;
};

/// `source` and `args` are what `next` holds.
inline Value generator(Context& context, FunctionGenerator::Next next, const Value& source, const Args& args = {}) {
  int depth = source.depth();
  for (const Value& value : args.positional) depth = std::max(depth, value.depth());
  for (const auto& [name, value] : args.named) depth = std::max(depth, value.depth());
  // One more than `source`: the iterator that is made of it.
  context.budget.work(1, 4 * sizeof(FunctionGenerator));
  return Value(std::shared_ptr<Object>(std::make_shared<FunctionGenerator>(std::move(next), depth + 1)));
}

}  // namespace shoal::jinja
