#include "runtime/text/split_pattern.h"

#include <algorithm>

namespace shoal::text {

Regex read_pattern(const JsonField& pattern) {
  if (const auto regex = pattern.find("Regex")) return Regex::compile(regex->as_string(), regex->place());
  if (const auto text = pattern.find("String")) return Regex::literal(text->as_string(), text->place());
  pattern.reject("expected {\"Regex\": ...} or {\"String\": ...}");
}

SplitBehavior read_split_behavior(const JsonField& behavior) {
  const std::string& name = behavior.as_string();
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  behavior.reject("split behaviour " + name + " is not supported");
}

void split_at(const std::vector<ByteRange>& matches, size_t size, SplitBehavior behavior, bool invert,
              std::vector<ByteRange>& pieces) {
  pieces.clear();
  // Merging joins a match to a neighbour that is already in `pieces`; MergedWithNext runs from the right, so its
  // "already there" neighbour is the following one.
  bool previous_match = false;
  const bool backwards = behavior == SplitBehavior::merged_with_next;
  const auto add = [&](size_t begin, size_t end, bool is_match) {
    is_match ^= invert;
    bool join = false;
    switch (behavior) {
      case SplitBehavior::removed:
        if (is_match) return;
        break;
      case SplitBehavior::isolated:
        break;
      case SplitBehavior::merged_with_previous:
      case SplitBehavior::merged_with_next:
        join = is_match && !previous_match;
        break;
      case SplitBehavior::contiguous:
        join = is_match == previous_match;
        break;
    }
    previous_match = is_match;
    if (join && !pieces.empty())
      (backwards ? pieces.back().begin : pieces.back().end) = backwards ? begin : end;
    else
      pieces.push_back({begin, end});
  };
  if (backwards) {
    size_t begin = size;
    for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
      if (match->end != begin) add(match->end, begin, false);
      add(match->begin, match->end, true);
      begin = match->begin;
    }
    if (begin != 0) add(0, begin, false);
    std::reverse(pieces.begin(), pieces.end());
  } else {
    size_t end = 0;
    for (const ByteRange match : matches) {
      if (match.begin != end) add(end, match.begin, false);
      add(match.begin, match.end, true);
      end = match.end;
    }
    if (end != size) add(end, size, false);
  }
  std::erase_if(pieces, [](ByteRange piece) { return piece.begin == piece.end; });
}

std::string replace_matches(std::string_view text, const Regex& pattern, std::string_view content) {
  std::vector<ByteRange> matches;
  pattern.find_all(text, matches);
  std::string out;
  size_t at = 0;
  for (const ByteRange match : matches) {
    out.append(text, at, match.begin - at);
    out += content;
    at = match.end;
  }
  return out.append(text, at);
}

}  // namespace shoal::text
