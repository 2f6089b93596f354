#include "runtime/text/jinja/context.h"

#include "runtime/text/jinja/functions.h"

namespace shoal::jinja {
namespace {

/// Up to this many variables, looking through all of them beats an index.
constexpr size_t kSmallScope = 16;

}  // namespace

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope; scope = scope->parent_.get())
    if (const Value* value = scope->find_own(name)) return value;
  return nullptr;
}

const Value* Scope::find_own(std::string_view name) const {
  if (!index_.empty()) {
    const auto it = index_.find(name);
    return it == index_.end() ? nullptr : &variables_[it->second].second;
  }
  for (const auto& [key, value] : variables_)
    if (key == name) return &value;
  return nullptr;
}

void Scope::set(std::string_view name, Value value) {
  if (const Value* there = find_own(name)) {
    const_cast<Value&>(*there) = std::move(value);
    return;
  }
  variables_.emplace_back(name, std::move(value));
  if (variables_.size() <= kSmallScope) return;
  for (size_t i = index_.size(); i < variables_.size(); ++i) index_.emplace(variables_[i].first, i);
}

void Scope::clear() {
  variables_.clear();
  index_.clear();
}

void Scope::release() {
  clear();
  parent_.reset();
}

Context::Context(const std::map<std::string, Value>& variables, size_t input_bytes)
    : budget(input_bytes), scope(std::make_shared<Scope>(nullptr)) {
  add_functions(*scope);
  for (const auto& [name, value] : variables) scope->set(name, value);
  scope = std::make_shared<Scope>(scope);
}

Context::~Context() {
  scope.reset();
  for (const auto& cell : kept_) cell->release();
}

Value Context::lookup(std::string_view name) const {
  if (const Value* value = scope->find(name)) return *value;
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

}  // namespace shoal::jinja
