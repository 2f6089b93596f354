#include "runtime/text/jinja/symbols.h"

#include "runtime/text/jinja/statements.h"

namespace shoal::jinja {

Symbols& Symbols::add_inner() {
  inner_.push_back(std::make_unique<Symbols>(this));
  return *inner_.back();
}

void Symbols::resolve() const {
  for (const auto& [name, use] : first_) {
    if (use == Use::store || use == Use::parameter) continue;
    // The outermost scope that has the name and from which it is handed inwards.
    const Symbols* owner = nullptr;
    for (const Symbols* scope = parent_; scope; scope = scope->parent_) {
      const auto it = scope->first_.find(name);
      if (it == scope->first_.end()) continue;
      owner = scope;
      if (it->second == Use::parameter) break;
    }
    if (owner && owner->hide_ && owner->first_.at(name) == Use::store) owner->hide_->add(name);
  }
  for (const auto& inner : inner_) inner->resolve();
}

}  // namespace shoal::jinja
