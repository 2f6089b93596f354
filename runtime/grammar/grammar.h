#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

/// Grammars that an answer must match: context-free, over the bytes of UTF-8.
namespace shoal::grammar {

/// A piece of a grammar as it is written.
struct Expression {
  enum class Kind {
    characters,  // one character of `ranges`
    sequence,    // all children, one after the other; none: the empty text
    choice,      // one of the children
    repeat,      // children[0], `least` to `most` times
    reference    // what the rule matches
  };
  Kind kind = Kind::sequence;
  std::vector<std::pair<char32_t, char32_t>> ranges;  // code points, both ends included
  std::vector<Expression> children;
  int least = 0, most = -1;  // -1: no limit
  int rule = -1;
};

struct Rule {
  std::string name;
  Expression body;
};

/// A grammar as a network of nodes, ready to be walked: a rule is a part of it that is called and returns, as in
/// Woods, "Transition network grammars for natural language analysis" (1970), with bytes on the arcs.
struct Network {
  struct Node {
    enum class Kind : std::uint8_t { bytes, split, call, end } kind = Kind::end;
    std::uint8_t low = 0, high = 0;  // of `bytes`
    std::int32_t next = -1;          // behind `bytes` and `call`; of `split`: its first way in `ways`
    std::int32_t target = -1;        // of `call`: where the rule begins; of `split`: the number of its ways
  };
  static constexpr std::int32_t end_node = 0;  // the end of every rule
  std::vector<Node> nodes;
  std::vector<std::int32_t> ways;
  std::int32_t start = 0;
};

/// Throws Error when a rule could call itself without having matched anything (left recursion), which no walk would
/// come to an end of, and when the network would be unreasonably large.
Network make_network(const std::vector<Rule>& rules, int root);

}  // namespace shoal::grammar
