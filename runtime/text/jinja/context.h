#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/text/jinja/budget.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// Something that can come to hold itself. The context keeps it to the end of the rendering and then empties it, so
/// that nothing leaks, and so that a long chain of such things is not freed one inside the other, which would take as
/// much stack.
class Cell {
 public:
  virtual ~Cell() = default;
  virtual void release() = 0;
};

/// The variables of one part of a template: the whole of it, a turn of a loop, a call of a macro. A scope sees what its
/// parent has. Names are views of text that outlives the rendering (the template's).
class Scope : public Cell {
 public:
  explicit Scope(std::shared_ptr<Scope> parent) : parent_(std::move(parent)) {}

  /// Null where neither this scope nor its parents have the name.
  const Value* find(std::string_view name) const;
  void set(std::string_view name, Value value);
  void clear();
  void release() override;

 private:
  const Value* find_own(std::string_view name) const;

  std::shared_ptr<Scope> parent_;
  std::vector<std::pair<std::string_view, Value>> variables_;
  std::map<std::string_view, size_t> index_;  // once there are many
};

/// The state of one rendering.
class Context {
 public:
  /// `variables` are what the template is given; they must outlive the context.
  Context(const std::map<std::string, Value>& variables, size_t input_bytes);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Value lookup(std::string_view name) const;
  /// Keeps `cell` to the end of the rendering.
  void keep(std::shared_ptr<Cell> cell) {
    budget.work(1, sizeof(Scope));
    keep_unbudgeted(std::move(cell));
  }
  void keep_unbudgeted(std::shared_ptr<Cell> cell) { kept_.push_back(std::move(cell)); }

  /// Charges for going through `value` once: its bytes, where it is text.
  void read(const Value& value) { budget.work(value.is_string() ? value.as_string().size() : 1); }
  /// Charges for looking for `key` among others; faults where it cannot be one.
  void use_key(const Value& key) { budget.work(key_bytes(key), 8); }
  /// Charges for making a list of `count` values.
  void make(size_t count) {
    budget.work(sizeof(Sequence));
    budget.work(count, sizeof(Value));
  }
  /// Charges for one more value in a list that grows.
  void grow() { budget.work(2 * sizeof(Value)); }
  /// The same of dict entries or named arguments.
  void make_entries(size_t count) { budget.work(count, 8 * sizeof(Value)); }

  Budget budget;
  int line = 1;  // of what is being evaluated, for messages
  std::shared_ptr<Scope> scope;

 private:
  std::vector<std::shared_ptr<Cell>> kept_;
};

/// Makes `scope` the current one while this lives.
class Within {
 public:
  Within(Context& context, std::shared_ptr<Scope> scope) : context_(context), before_(std::move(scope)) {
    std::swap(context_.scope, before_);
  }
  ~Within() { std::swap(context_.scope, before_); }
  Within(const Within&) = delete;
  Within& operator=(const Within&) = delete;

 private:
  Context& context_;
  std::shared_ptr<Scope> before_;
};

}  // namespace shoal::jinja
