#pragma once
#include <fmt/format.h>

#include <string>
#include <utility>

#include "base/error.h"
#include "runtime/grammar/gbnf_text.h"

namespace shoal::grammar {

[[noreturn]] inline void refuse_schema(const std::string& place, const std::string& what) {
  fail("the JSON schema at {}: {}", place, what);
}

/// The rules of GBNF that a schema becomes, beside the one that has its name.
class SchemaRules {
 public:
  explicit SchemaRules(std::string name) : name_(std::move(name)) {}

  /// Adds a rule and returns its name.
  std::string add(const std::string& body) {
    std::string name = fmt::format("{}-{}", name_, ++count_);
    add(name, body);
    return name;
  }
  void add(const std::string& name, const std::string& body) {
    if (text_.size() + body.size() > max_gbnf_bytes)
      fail("the JSON schema makes a grammar of more than {} bytes", max_gbnf_bytes);
    text_ += name + " ::= " + body + "\n";
  }

  const std::string& name() const { return name_; }
  const std::string& text() const { return text_; }

 private:
  const std::string name_;
  std::string text_;
  int count_ = 0;
};

}  // namespace shoal::grammar
