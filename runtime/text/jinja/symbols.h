#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace shoal::jinja {

class Hide;

/// How a scope's own part of a template uses its names, for one oddity of Jinja. It decides before rendering where a
/// name is looked up (jinja2/idtracking.py): a name that a scope sets, not in an if and without having read it before,
/// is the scope's from its beginning on. What the template was given under that name is then hidden from scopes inside,
/// which find the name undefined until it is set:
///   {% for x in y %}{{ tools }}{% endfor %}{% set tools = [] %}
class Symbols {
 public:
  explicit Symbols(Symbols* parent) : parent_(parent) {}

  void load(const std::string& name) { first_.emplace(name, Use::load); }
  void store(const std::string& name) { first_.emplace(name, ifs_ > 0 ? Use::store_in_if : Use::store); }
  /// A name that the scope has a value for from the start: a parameter, a loop's variable.
  void parameter(const std::string& name) { first_[name] = Use::parameter; }
  void enter_if() { ++ifs_; }
  void leave_if() { --ifs_; }

  /// The symbols of a scope inside of this one.
  Symbols& add_inner();
  bool has_inner() const { return !inner_.empty(); }
  /// `hide` stands at the begin of the scope and takes the names that are to be hidden.
  void set_hide(Hide& hide) { hide_ = &hide; }
  /// For the outermost scope, once all is read: tells each scope's Hide its names.
  void resolve() const;

 private:
  enum class Use { load, store, store_in_if, parameter };

  Symbols* parent_;
  std::vector<std::unique_ptr<Symbols>> inner_;
  std::map<std::string, Use> first_;  // how each name is used first
  int ifs_ = 0;
  Hide* hide_ = nullptr;
};

}  // namespace shoal::jinja
