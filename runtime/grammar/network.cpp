#include <map>
#include <optional>

#include "base/error.h"
#include "runtime/grammar/grammar.h"
#include "runtime/grammar/utf8_ranges.h"

namespace shoal::grammar {
namespace {

constexpr std::size_t max_nodes = 400000;
constexpr std::size_t max_pieces = 4000000;  // of expressions, those that are repeated each time anew

class Builder {
 public:
  explicit Builder(const std::vector<Rule>& rules) : rules_(rules) {
    net_.nodes.push_back({});
    // Where each rule begins is fixed up front, since rules call one another.
    for (std::size_t i = 0; i < rules.size(); ++i) add({Node::Kind::split, 0, 0, 0, 0});
    for (std::size_t i = 0; i < rules.size(); ++i) {
      const std::int32_t body = compile(rules[i].body, Network::end_node);
      set_ways(start_of(static_cast<int>(i)), {body});
    }
  }

  Network finish(int root) {
    net_.start = start_of(root);
    return std::move(net_);
  }

  void refuse_left_recursion() {
    follow_empty_ways();
    progress_.assign(rules_.size(), Progress::none);
    for (std::size_t i = 0; i < rules_.size(); ++i) visit(i);
  }

 private:
  using Node = Network::Node;

  static std::int32_t start_of(int rule) { return rule + 1; }
  static std::size_t rule_at(std::int32_t start) { return static_cast<std::size_t>(start - 1); }

  std::int32_t add(const Node& node) {
    if (net_.nodes.size() >= max_nodes) fail("the grammar is too large: it would take more than {} nodes", max_nodes);
    net_.nodes.push_back(node);
    return static_cast<std::int32_t>(net_.nodes.size() - 1);
  }

  void set_ways(std::int32_t split, const std::vector<std::int32_t>& ways) {
    Node& node = net_.nodes[static_cast<std::size_t>(split)];
    node.next = static_cast<std::int32_t>(net_.ways.size());
    node.target = static_cast<std::int32_t>(ways.size());
    net_.ways.insert(net_.ways.end(), ways.begin(), ways.end());
  }

  std::int32_t split(const std::vector<std::int32_t>& ways) {
    if (ways.size() == 1) return ways[0];
    const std::int32_t node = add({Node::Kind::split, 0, 0, 0, 0});
    set_ways(node, ways);
    return node;
  }

  /// The node at which `expression`, and behind it `next`, begins.
  std::int32_t compile(const Expression& expression, std::int32_t next) {
    // Pieces that match nothing make no nodes, and may be repeated all the same.
    pieces_ += 1 + expression.ranges.size();
    if (pieces_ > max_pieces) fail("the grammar is too large: it has more than {} pieces", max_pieces);
    switch (expression.kind) {
      case Expression::Kind::characters:
        return compile_characters(expression, next);
      case Expression::Kind::sequence:
        for (auto child = expression.children.rbegin(); child != expression.children.rend(); ++child) {
          next = compile(*child, next);
        }
        return next;
      case Expression::Kind::choice: {
        std::vector<std::int32_t> ways;
        for (const Expression& child : expression.children) ways.push_back(compile(child, next));
        return split(ways);
      }
      case Expression::Kind::repeat:
        return compile_repeat(expression, next);
      case Expression::Kind::reference:
        return add({Node::Kind::call, 0, 0, next, start_of(expression.rule)});
    }
    return next;
  }

  std::int32_t compile_characters(const Expression& expression, std::int32_t next) {
    std::vector<std::int32_t> ways;
    for (const ByteRanges& row : utf8_ranges(expression.ranges)) {
      std::int32_t at = next;
      for (int i = row.length - 1; i >= 0; --i) {
        const auto [low, high] = row.bytes[static_cast<std::size_t>(i)];
        at = add({Node::Kind::bytes, low, high, at, -1});
      }
      ways.push_back(at);
    }
    return ways.size() == 1 ? ways[0] : split(ways);  // without any way: nothing matches
  }

  std::int32_t compile_repeat(const Expression& expression, std::int32_t next) {
    const Expression& body = expression.children[0];
    std::int32_t at = next;
    if (expression.most < 0) {
      at = add({Node::Kind::split, 0, 0, 0, 0});
      const std::int32_t again = compile(body, at);
      set_ways(at, {again, next});
    } else {
      for (int i = expression.least; i < expression.most; ++i) at = split({compile(body, at), next});
    }
    for (int i = 0; i < expression.least; ++i) {
      const std::int32_t again = compile(body, at);
      if (again == at) break;  // nothing, however often
      at = again;
    }
    return at;
  }

  /// Finds the rules that may match nothing and, of each, those it may call before any byte was matched. Ways on which
  /// nothing is matched are followed in all rules at once, each once; one that leads behind a call waits until the
  /// called rule is known to match nothing.
  void follow_empty_ways() {
    struct Way {
      std::size_t rule;
      std::int32_t node;
    };
    left_calls_.resize(rules_.size());
    std::vector<bool> seen(net_.nodes.size()), empty(rules_.size());
    std::vector<std::vector<Way>> waiting(rules_.size());  // for this rule
    std::vector<Way> open;
    for (std::size_t i = 0; i < rules_.size(); ++i) open.push_back({i, start_of(static_cast<int>(i))});
    while (!open.empty()) {
      const auto [rule, at] = open.back();
      open.pop_back();
      if (at == Network::end_node) {  // which all rules share
        empty[rule] = true;
        open.insert(open.end(), waiting[rule].begin(), waiting[rule].end());
        waiting[rule].clear();
        continue;
      }
      if (seen[static_cast<std::size_t>(at)]) continue;
      seen[static_cast<std::size_t>(at)] = true;
      const Node& n = net_.nodes[static_cast<std::size_t>(at)];
      if (n.kind == Node::Kind::split) {
        for (std::int32_t i = 0; i < n.target; ++i)
          open.push_back({rule, net_.ways[static_cast<std::size_t>(n.next + i)]});
      }
      if (n.kind == Node::Kind::call) {
        const std::size_t callee = rule_at(n.target);
        left_calls_[rule].push_back(callee);
        (empty[callee] ? open : waiting[callee]).push_back({rule, n.next});
      }
    }
  }

  void visit(std::size_t first) {
    // Depth first without recursion: a grammar may have very many rules.
    std::vector<std::pair<std::size_t, std::size_t>> path;
    const auto enter = [&](std::size_t rule) {
      progress_[rule] = Progress::open;
      path.emplace_back(rule, 0);
    };
    if (progress_[first] == Progress::none) enter(first);
    while (!path.empty()) {
      auto& [rule, at] = path.back();
      if (at == left_calls_[rule].size()) {
        progress_[rule] = Progress::done;
        path.pop_back();
        continue;
      }
      const std::size_t callee = left_calls_[rule][at++];
      if (progress_[callee] == Progress::open) {
        fail("the rule '{}' may begin with itself (left recursion); write it as a repetition", rules_[callee].name);
      }
      if (progress_[callee] == Progress::none) enter(callee);
    }
  }

  enum class Progress { none, open, done };
  const std::vector<Rule>& rules_;
  Network net_;
  std::size_t pieces_ = 0;
  std::vector<std::vector<std::size_t>> left_calls_;  // [rules]
  std::vector<Progress> progress_;                    // [rules]
};

}  // namespace

Network make_network(const std::vector<Rule>& rules, int root) {
  Builder builder(rules);
  builder.refuse_left_recursion();
  return builder.finish(root);
}

}  // namespace shoal::grammar
