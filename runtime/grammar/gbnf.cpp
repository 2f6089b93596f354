#include "runtime/grammar/gbnf.h"

#include <algorithm>
#include <map>
#include <string>

#include "base/error.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/utf8_ranges.h"

namespace shoal::grammar {
namespace {

constexpr int max_parentheses_deep = 200;
constexpr int max_repetitions = 100000;

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Network parse() {
    for (skip_space(true); !at_end(); skip_space(true)) parse_rule();
    const auto root = numbers_.find("root");
    if (root == numbers_.end()) fail("the grammar has no rule 'root'");
    for (std::size_t i = 0; i < rules_.size(); ++i) {
      if (!defined_[i]) fail("the grammar has no rule '{}', which it refers to", rules_[i].name);
    }
    return make_network(rules_, root->second);
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n');
    fail("the grammar, line {}: {}", line, what);
  }

  bool at_end() const { return at_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void skip_space(bool lines_too) {
    for (; !at_end(); ++at_) {
      if (peek() == '#') {
        while (!at_end() && peek() != '\n') ++at_;
        --at_;
        if (at_ + 1 >= text_.size()) at_ = text_.size() - 1;
        continue;
      }
      const bool line = peek() == '\n' || peek() == '\r';
      if (peek() != ' ' && peek() != '\t' && !(line && lines_too)) return;
    }
  }

  std::string name() {
    const std::size_t begin = at_;
    while (!at_end() && is_name_character(peek())) ++at_;
    if (at_ == begin) wrong("the name of a rule is expected");
    return std::string(text_.substr(begin, at_ - begin));
  }

  int rule_number(const std::string& rule) {
    const auto [at, is_new] = numbers_.try_emplace(rule, static_cast<int>(rules_.size()));
    if (is_new) {
      rules_.push_back({rule, {}});
      defined_.push_back(false);
    }
    return at->second;
  }

  void parse_rule() {
    const std::string rule = name();
    skip_space(false);
    if (!take("::=")) wrong("'::=' is expected behind the rule's name '" + rule + "'");
    skip_space(true);
    const auto number = static_cast<std::size_t>(rule_number(rule));
    if (defined_[number]) wrong("the rule '" + rule + "' is there twice");
    defined_[number] = true;
    Expression body = choice(0);
    rules_[number].body = std::move(body);
    skip_space(false);
    if (!at_end() && peek() != '\n' && peek() != '\r') wrong(std::string("'") + peek() + "' is not expected here");
  }

  /// Whether the next line goes on with another alternative.
  bool alternative_follows() {
    const std::size_t before = at_;
    skip_space(true);
    if (peek() == '|') return true;
    at_ = before;
    return false;
  }

  Expression choice(int depth) {
    if (depth > max_parentheses_deep) wrong("parentheses are nested too deep");
    Expression all;
    all.kind = Expression::Kind::choice;
    all.children.push_back(sequence(depth));
    while (alternative_follows()) {
      ++at_;
      skip_space(true);
      all.children.push_back(sequence(depth));
    }
    return all.children.size() == 1 ? std::move(all.children[0]) : all;
  }

  Expression sequence(int depth) {
    Expression all;
    for (skip_space(depth > 0); !at_end(); skip_space(depth > 0)) {
      const char c = peek();
      Expression item;
      if (c == '"') {
        item = literal();
      } else if (c == '[') {
        item = character_class();
      } else if (c == '.') {
        ++at_;
        item.kind = Expression::Kind::characters;
        item.ranges = complement({});
      } else if (c == '(') {
        ++at_;
        item = choice(depth + 1);
        skip_space(true);
        if (!take(")")) wrong("')' is missing");
      } else if (is_name_character(c)) {
        item.kind = Expression::Kind::reference;
        item.rule = rule_number(name());
      } else {
        break;
      }
      all.children.push_back(repeated(std::move(item), depth));
    }
    return all;
  }

  Expression repeated(Expression item, int depth) {
    for (int times = 0;; ++times) {
      skip_space(depth > 0);
      int least = 0, most = -1;
      if (take("+")) {
        least = 1;
      } else if (take("?")) {
        most = 1;
      } else if (take("{")) {
        skip_space(false);
        least = peek() == ',' ? 0 : number();
        skip_space(false);
        most = least;
        if (take(",")) {
          skip_space(false);
          most = peek() == '}' ? -1 : number();
          skip_space(false);
        }
        if (!take("}")) wrong("'}' is missing");
        if (most >= 0 && most < least) wrong("a repetition's limits are in the wrong order");
      } else if (!take("*")) {
        return item;
      }
      if (times > 8) wrong("too many repetitions of one another");
      Expression outer;
      outer.kind = Expression::Kind::repeat;
      outer.least = least;
      outer.most = most;
      outer.children.push_back(std::move(item));
      item = std::move(outer);
    }
  }

  int number() {
    int value = 0;
    if (peek() < '0' || peek() > '9') wrong("a number is expected");
    for (; peek() >= '0' && peek() <= '9'; ++at_) {
      value = value * 10 + (peek() - '0');
      if (value > max_repetitions) wrong("a repetition is limited to " + std::to_string(max_repetitions));
    }
    return value;
  }

  static Expression one_character(char32_t code) {
    Expression e;
    e.kind = Expression::Kind::characters;
    e.ranges.emplace_back(code, code);
    return e;
  }

  Expression literal() {
    ++at_;
    Expression all;
    while (peek() != '"') all.children.push_back(one_character(character("a literal's '\"' is missing")));
    ++at_;
    return all;
  }

  Expression character_class() {
    ++at_;
    Expression all;
    all.kind = Expression::Kind::characters;
    const bool negated = take("^");
    const char* const open = "a class's ']' is missing";
    while (peek() != ']') {
      const char32_t low = character(open);
      char32_t high = low;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        high = character(open);
      }
      if (high < low) wrong("a range's ends are in the wrong order");
      all.ranges.emplace_back(low, high);
    }
    ++at_;
    if (negated) all.ranges = complement(std::move(all.ranges));
    return all;
  }

  char32_t character(const char* missing) {
    if (at_end()) wrong(missing);
    const auto lead = static_cast<unsigned char>(text_[at_++]);
    if (lead == '\\') return escape();
    if (lead < 0x80) return lead;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : -1;
    if (more < 0 || at_ + static_cast<std::size_t>(more) > text_.size()) wrong("it is not valid UTF-8");
    char32_t code = lead & (0x3Fu >> more);
    for (int i = 0; i < more; ++i) {
      const auto byte = static_cast<unsigned char>(text_[at_++]);
      if ((byte & 0xC0) != 0x80) wrong("it is not valid UTF-8");
      code = code << 6 | (byte & 0x3F);
    }
    if (code > 0x10FFFF) wrong("it is not valid UTF-8");
    return code;
  }

  char32_t escape() {
    if (at_end()) wrong("a character is missing behind '\\'");
    const char c = text_[at_++];
    switch (c) {
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'x':
        return hexadecimal(2);
      case 'u':
        return hexadecimal(4);
      case 'U':
        return hexadecimal(8);
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^':
        return static_cast<char32_t>(c);
      default:
        wrong(std::string("'\\") + c + "' is not known");
    }
  }

  char32_t hexadecimal(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) wrong("a hexadecimal digit is missing");
      value = value << 4 | static_cast<char32_t>(digit);
      ++at_;
    }
    if (value > 0x10FFFF) wrong("there is no such character");
    return value;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::map<std::string, int> numbers_;
  std::vector<Rule> rules_;
  std::vector<bool> defined_;
};

}  // namespace

Network parse_gbnf(std::string_view text) {
  if (text.size() > max_gbnf_bytes) fail("a grammar of more than {} bytes is not supported", max_gbnf_bytes);
  return Parser(text).parse();
}

}  // namespace shoal::grammar
