#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// Values that come one after another, once: what for loops go through, and what map, select and others give. They are
/// made when they are asked for, as Python's generators do, so that `x|selectattr(...)|first` looks no further.
class Generator : public Object {
 public:
  /// `nested`: the depth of the values that it holds.
  explicit Generator(int nested = 0);

  /// The next value; none at the end.
  std::optional<Value> next(Context& context);

  std::string text(Context& context) override;
  std::string_view type_name() const override { return "generator"; }
  int depth() const override { return depth_; }

 private:
  virtual std::optional<Value> make_next(Context& context) = 0;

  int depth_;
};

/// Goes through what `value` has: items, keys of a dict, characters of text. Faults where there is no such thing.
std::shared_ptr<Generator> iterate(Context& context, const Value& value);

/// As iterate, backwards; faults where Python's reversed() would.
std::shared_ptr<Generator> iterate_backwards(Context& context, const Value& value);

/// True where iterate would not fault.
bool is_iterable(const Value& value);

/// All that iterate gives.
List to_list(Context& context, const Value& value);

}  // namespace shoal::jinja
